"""An answer on its way out, whole or piece by piece. Routes differ only in how they put it on the wire: by a Writer."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from service.api import sse
from service.api.disconnect import until_disconnect
from service.chat.generation import Done, TextDelta
from service.chat.logprobs import TokenReport
from service.errors import ServiceError

logger = logging.getLogger(__name__)

Pieces = AsyncGenerator[TextDelta | Done]


class Writer(Protocol):
    """How one route writes one answer."""

    def delta(self, piece: TextDelta) -> BaseModel:
        """A piece of a streamed answer."""
        ...

    def last(self, response: str, done: Done) -> Sequence[BaseModel]:
        """How a streamed answer ends; `response` is all of its text."""
        ...

    def whole(self, response: str, done: Done) -> BaseModel:
        """The answer that is not streamed; `done` has all of its tokens."""
        ...

    def error(self, problem: ServiceError) -> bytes:
        """The event of a stream that fails half-way."""
        ...


async def respond(
    request: Request, pieces: Pieces, writer: Writer, *, stream: bool, logged_prompt: str | None
) -> Response:
    """The answer as an HTTP response. What fails before its first piece is raised, and so has a status of its own."""
    transcript = Transcript(writer, logged_prompt)
    if stream:
        first = await until_disconnect(request.receive, first_of(pieces))
        return sse.EventStream(first, pieces, transcript.encode, writer.error)
    whole = await until_disconnect(request.receive, transcript.collect(pieces))
    return JSONResponse(whole.model_dump())


async def first_of(pieces: Pieces) -> TextDelta | Done:
    """The first piece, before which nothing is sent."""
    return await anext(pieces)


class Transcript:
    """The answer so far. With a prompt given, both are logged when the answer is whole."""

    def __init__(self, writer: Writer, logged_prompt: str | None) -> None:
        self._writer = writer
        self._prompt = logged_prompt
        self._texts: list[str] = []
        self._tokens: list[TokenReport] = []

    def encode(self, piece: TextDelta | Done) -> bytes:
        """The event, or events, of one piece."""
        if isinstance(piece, TextDelta):
            self._texts.append(piece.text)
            return sse.event(self._writer.delta(piece))
        return b"".join(map(sse.event, self._writer.last(self._finish(), piece)))

    async def collect(self, pieces: Pieces) -> BaseModel:
        """The whole answer; it is over, and counted, before it is sent."""
        async with aclosing(pieces):
            async for piece in pieces:
                self._tokens += piece.tokens
                if isinstance(piece, Done):
                    return self._writer.whole(self._finish(), replace(piece, tokens=self._tokens))
                self._texts.append(piece.text)
        raise AssertionError("an answer ends in Done or raises")

    def _finish(self) -> str:
        response = "".join(self._texts)
        if self._prompt is not None:
            logger.info("answered", extra={"fields": {"prompt": self._prompt, "response": response}})
        return response
