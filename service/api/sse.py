"""Server-sent events: the only writer of `data:`. A client that leaves ends the stream at once, mid-wait too."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import problems
from service.api.disconnect import ClientGoneError, until_disconnect
from service.errors import ServiceError

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
SEND_TIMEOUT_SECONDS = 60
"""A client that takes no byte for so long is gone, whatever its TCP connection says."""

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx holds a stream back to its end otherwise
}


# They end no line of an event stream, but many a client cuts its lines as Python's str.splitlines does.
_SEPARATORS = str.maketrans({separator: f"\\u{ord(separator):04x}" for separator in "\x85\u2028\u2029"})


def event(data: BaseModel) -> bytes:
    return b"data: " + data.model_dump_json().translate(_SEPARATORS).encode() + b"\n\n"


class _Problem(BaseModel, extra="allow"):
    """A problem document inside a stream; JSON goes through pydantic so that a quote in a text stays a quote."""


def error(problem: ServiceError) -> bytes:
    return b"event: error\n" + event(_Problem(**problems.document(problem)))


class EventStream(Response):
    """Sends events while it watches the connection.

    Not Starlette's StreamingResponse: under some ASGI versions that one notices a client's leaving only when it
    sends again, and an answer that is still being computed would go on costing GPU time.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send_all(send))
        except (ClientGoneError, TimeoutError):
            logger.info("the client left its stream")
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        await _in_time(send({"type": "http.response.start", "status": 200, "headers": self.raw_headers}))
        async for chunk in self._events:
            await _in_time(send({"type": "http.response.body", "body": chunk, "more_body": True}))
        await _in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))


async def _in_time(sending: Awaitable[None]) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
        await sending
