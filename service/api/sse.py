"""Server-sent events: the only writer of `data:`. A client that leaves ends the stream at once, mid-wait too."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import problems
from service.api.disconnect import ClientGoneError, until_disconnect
from service.errors import ServiceError
from service.log import note

logger = logging.getLogger(__name__)

Piece = TypeVar("Piece")

DONE = b"data: [DONE]\n\n"
SEND_TIMEOUT_SECONDS = 60
"""A client that takes no byte for so long is gone, whatever its TCP connection says."""

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx holds a stream back to its end otherwise
}


SEPARATORS = "\x85\u2028\u2029"
"""They end no line of an event stream, but many a client cuts its lines as Python's str.splitlines does."""

_ESCAPED = str.maketrans({separator: f"\\u{ord(separator):04x}" for separator in SEPARATORS})


class NamedEvent(BaseModel):
    """What is sent under a name, which is its `type`."""

    type: str


def event(data: BaseModel) -> bytes:
    text = data.model_dump_json()
    if any(separator in text for separator in SEPARATORS):  # to translate takes longer than all else here
        text = text.translate(_ESCAPED)
    name = f"event: {data.type}\n" if isinstance(data, NamedEvent) else ""
    return f"{name}data: {text}\n\n".encode()


class _Problem(BaseModel, extra="allow"):
    """A problem document inside a stream: a model, since events are written from models alone; it has a type that is no
    name."""


def error(problem: ServiceError) -> bytes:
    return b"event: error\n" + event(_Problem(**problems.document(problem)))


class EventStream(Response, Generic[Piece]):
    """Sends the pieces of an answer as events while it watches the connection, and closes their source at the end.

    Not Starlette's StreamingResponse: under some ASGI versions that one notices a client's leaving only when it
    sends again, and an answer that is still being computed would go on costing GPU time.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: Piece,
        rest: AsyncGenerator[Piece],
        encode: Callable[[Piece], bytes],
        encode_error: Callable[[ServiceError], bytes],
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._first = first
        self._rest = rest
        self._encode = encode
        self._encode_error = encode_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):  # by its owner: a generator around it would not close it before it has begun
            try:
                await until_disconnect(receive, self._send_all(send))
            except (ClientGoneError, TimeoutError):
                logger.info("the client left its stream")

    async def _send_all(self, send: Send) -> None:
        await _in_time(send({"type": "http.response.start", "status": 200, "headers": self.raw_headers}))
        try:
            await _send_body(send, self._encode(self._first))
            async for piece in self._rest:
                await _send_body(send, self._encode(piece))
        except ServiceError as problem:
            note(problem=problem.code)  # the status has been 200 for long
            await _send_body(send, self._encode_error(problem))
        await _send_body(send, DONE)
        await _send_body(send, b"", more=False)


async def _send_body(send: Send, chunk: bytes, *, more: bool = True) -> None:
    await _in_time(send({"type": "http.response.body", "body": chunk, "more_body": more}))


async def _in_time(sending: Awaitable[None]) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
        await sending
