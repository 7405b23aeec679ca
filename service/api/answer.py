"""Answers on their way out, whole or piece by piece. Routes differ only in how they put them on the wire: by a Writer.

A request has one answer, or several to choose from.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple, Protocol

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel

from service.api import sse
from service.api.disconnect import until_disconnect
from service.chat.logprobs import TokenReport
from service.chat.pieces import CallDelta, Delta, Done, Pieces, TextDelta
from service.errors import ServiceError

logger = logging.getLogger(__name__)


class Call(NamedTuple):
    """Of a tool. `arguments`: the text of a JSON object, if the answer was not cut."""

    name: str
    arguments: str


class Answer(NamedTuple):
    """One that is whole; `done` has all of its tokens, unless they were streamed."""

    text: str
    done: Done
    call: Call | None = None


class Writer(Protocol):
    """How one route writes the answers to one request."""

    def delta(self, piece: Delta) -> Sequence[BaseModel]:
        """A piece of a streamed answer."""
        ...

    def last(self, response: str, done: Done) -> Sequence[BaseModel]:
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
    request: Request,
    pieces: Pieces,
    writer: Writer,
    *,
    stream: bool,
    logged_prompts: Sequence[str] | None,
    choices: int = 1,
) -> Response:
    """So many answers as an HTTP response. What fails before the first piece is raised, and so has a status of its
    own."""
    transcript = Transcript(writer, logged_prompts, choices)
    if stream:
        first = await until_disconnect(request.receive, first_of(pieces))
        return sse.EventStream(first, pieces, transcript.encode, writer.error)
    whole = await until_disconnect(request.receive, transcript.collect(pieces))
    return Response(whole.model_dump_json(), media_type="application/json")


async def first_of(pieces: Pieces) -> Delta | Done:
    """The first piece, before which nothing is sent."""
    return await anext(pieces)


class Transcript:
    """The answers so far. With prompts given, which have as many answers each, every answer is logged with its own
    when it is whole."""

    def __init__(self, writer: Writer, logged_prompts: Sequence[str] | None, choices: int) -> None:
        self._writer = writer
        self._prompts = logged_prompts
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._calls: dict[int, list[CallDelta]] = defaultdict(list)
        self._tokens: list[list[TokenReport]] = [[] for _ in range(choices)]  # none of a stream, which has sent them
        self._whole: dict[int, Answer] = {}

    def encode(self, piece: Delta | Done) -> bytes:
        """The event, or events, of one piece."""
        self._add(piece)
        return b"".join(map(sse.event, self._written(piece)))

    def _written(self, piece: Delta | Done) -> Sequence[BaseModel]:
        if not isinstance(piece, Done):
            return self._writer.delta(piece)
        last = self._writer.last(self._whole[piece.choice].text, piece)
        return [*last, *self._writer.behind(self._answers)] if self._is_whole else last

    async def collect(self, pieces: Pieces) -> BaseModel:
        """All answers; they are over, and counted, before they are sent."""
        async with aclosing(pieces):
            async for piece in pieces:
                self._keep_reports(piece)
                self._add(piece)
                if self._is_whole:
                    return self._writer.whole(self._answers)
        raise AssertionError("an answer ends in Done or raises")

    @property
    def _is_whole(self) -> bool:
        return len(self._whole) == len(self._texts)

    @property
    def _answers(self) -> list[Answer]:
        return [answer for _, answer in sorted(self._whole.items())]

    def _keep_reports(self, piece: Delta | Done) -> None:
        if not isinstance(piece, CallDelta):
            self._tokens[piece.choice] += piece.tokens

    def _add(self, piece: Delta | Done) -> None:
        if isinstance(piece, TextDelta):
            self._texts[piece.choice].append(piece.text)
        elif isinstance(piece, CallDelta):
            self._calls[piece.choice].append(piece)
        else:
            self._end(piece)

    def _end(self, done: Done) -> None:
        text, call = "".join(self._texts[done.choice]), _joined(self._calls[done.choice])
        self._whole[done.choice] = Answer(text, replace(done, tokens=self._tokens[done.choice]), call)
        if self._prompts is not None:
            prompt = self._prompts[done.choice * len(self._prompts) // len(self._texts)]
            called = {"call": call._asdict()} if call else {}
            logger.info("answered", extra={"fields": {"prompt": prompt, "response": text, **called}})


def _joined(deltas: list[CallDelta]) -> Call | None:
    """The call that they are pieces of; None for none."""
    return Call(deltas[0].name, "".join(each.arguments for each in deltas)) if deltas else None
