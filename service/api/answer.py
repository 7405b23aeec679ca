"""Answers on their way out, whole or piece by piece. Routes differ only in how they put them on the wire: by a Writer.

A request has one answer, or several to choose from.
"""

import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple, Protocol

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from service.api import sse
from service.api.disconnect import until_disconnect
from service.chat.generation import Done, Pieces, TextDelta
from service.chat.logprobs import TokenReport
from service.errors import ServiceError

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """One that is whole; `done` has all of its tokens, unless they were streamed."""

    text: str
    done: Done


class Writer(Protocol):
    """How one route writes the answers to one request."""

    def delta(self, piece: TextDelta) -> BaseModel:
        """A piece of a streamed answer."""
        ...

    def last(self, response: str, done: Done) -> BaseModel:
        """How a streamed answer ends; `response` is all of its text."""
        ...

    def behind(self, answers: Sequence[Answer]) -> Sequence[BaseModel]:
        """What a stream has behind all of its answers."""
        ...

    def whole(self, answers: Sequence[Answer]) -> BaseModel:
        """The answers that are not streamed."""
        ...

    def error(self, problem: ServiceError) -> bytes:
        """The event of a stream that fails half-way."""
        ...


async def respond(
    request: Request, pieces: Pieces, writer: Writer, *, stream: bool, logged_prompt: str | None, choices: int = 1
) -> Response:
    """So many answers as an HTTP response. What fails before the first piece is raised, and so has a status of its
    own."""
    transcript = Transcript(writer, logged_prompt, choices)
    if stream:
        first = await until_disconnect(request.receive, first_of(pieces))
        return sse.EventStream(first, pieces, transcript.encode, writer.error)
    whole = await until_disconnect(request.receive, transcript.collect(pieces))
    return Response(whole.model_dump_json(), media_type="application/json")


async def first_of(pieces: Pieces) -> TextDelta | Done:
    """The first piece, before which nothing is sent."""
    return await anext(pieces)


class Transcript:
    """The answers so far. With a prompt given, it and each answer are logged when that is whole."""

    def __init__(self, writer: Writer, logged_prompt: str | None, choices: int) -> None:
        self._writer = writer
        self._prompt = logged_prompt
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._tokens: list[list[TokenReport]] = [[] for _ in range(choices)]  # none of a stream, which has sent them
        self._whole: dict[int, Answer] = {}

    def encode(self, piece: TextDelta | Done) -> bytes:
        """The event, or events, of one piece."""
        self._add(piece, [])
        if isinstance(piece, TextDelta):
            return sse.event(self._writer.delta(piece))
        last = self._writer.last(self._whole[piece.choice].text, piece)
        behind = self._writer.behind(self._answers) if self._is_whole else []
        return b"".join(map(sse.event, [last, *behind]))

    async def collect(self, pieces: Pieces) -> BaseModel:
        """All answers; they are over, and counted, before they are sent."""
        async with aclosing(pieces):
            async for piece in pieces:
                self._add(piece, piece.tokens)
                if self._is_whole:
                    return self._writer.whole(self._answers)
        raise AssertionError("an answer ends in Done or raises")

    @property
    def _is_whole(self) -> bool:
        return len(self._whole) == len(self._texts)

    @property
    def _answers(self) -> list[Answer]:
        return [answer for _, answer in sorted(self._whole.items())]

    def _add(self, piece: TextDelta | Done, tokens: list[TokenReport]) -> None:
        texts, kept = self._texts[piece.choice], self._tokens[piece.choice]
        kept += tokens
        if isinstance(piece, TextDelta):
            texts.append(piece.text)
            return
        text = "".join(texts)
        self._whole[piece.choice] = Answer(text, replace(piece, tokens=kept))
        if self._prompt is not None:
            logger.info("answered", extra={"fields": {"prompt": self._prompt, "response": text}})
