"""Writes what a client of OpenAI's responses is answered: one response, or the events of one."""

import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from service.api import sse
from service.api.answer import Answer
from service.api.health import Identity
from service.api.openai import errors
from service.api.openai.responses.events import ResponseEvent, StreamEvent
from service.api.openai.responses.output import Output
from service.api.openai.responses.request import ResponseRequest
from service.api.openai.responses.response import (
    Asked,
    Failure,
    Incomplete,
    InputDetails,
    ModelResponse,
    ResponseUsage,
    Status,
)
from service.api.openai.responses.tools import choice_repeated
from service.chat.pieces import Delta, Done, TextDelta
from service.chat.stopwatch import Counts
from service.errors import ServiceError
from service.log import request_id


class ResponseWriter:
    """Writes the answer to one request. Of a stream it keeps what was sent: the items' last events repeat it."""

    def __init__(self, identity: Identity, body: ResponseRequest) -> None:
        self._response = ModelResponse(
            id=f"resp_{request_id.get()}", created_at=int(time.time()), model=identity.model, **asked(body)
        )
        self._numbers = count()
        self._output = Output()
        self._has_begun = False

    def delta(self, piece: Delta) -> list[StreamEvent]:
        return self._numbered([*self._begins(), *self._goes_on(piece)])

    def last(self, response: str, done: Done) -> list[StreamEvent]:
        return self._numbered([*self._begins(), *self._output.ends(status_of(done), done.tokens)])

    def behind(self, answers: Sequence[Answer]) -> list[StreamEvent]:
        (answer,) = answers
        response = self._ended(answer.done)
        ending = "response.incomplete" if response.incomplete_details else "response.completed"
        return self._numbered([ResponseEvent(type=ending, response=response)])

    def whole(self, answers: Sequence[Answer]) -> ModelResponse:
        (answer,) = answers
        if answer.text:
            self._output.text(answer.text, answer.done.tokens)
        if answer.call:
            self._output.call(*answer.call)
        self._output.ends(status_of(answer.done), [] if answer.text else answer.done.tokens)
        return self._ended(answer.done)

    def error(self, problem: ServiceError) -> bytes:
        said = errors.body(problem).error
        failure = Failure(code=said.code, message=said.message)
        response = self._told(status="failed", error=failure)
        return b"".join(map(sse.event, self._numbered([ResponseEvent(type="response.failed", response=response)])))

    def _begins(self) -> list[StreamEvent]:
        if self._has_begun:
            return []
        self._has_begun = True
        return [
            ResponseEvent(type="response.created", response=self._response),
            ResponseEvent(type="response.in_progress", response=self._response),
        ]

    def _goes_on(self, piece: Delta) -> list[StreamEvent]:
        if isinstance(piece, TextDelta):
            return self._output.text(piece.text, piece.tokens)
        return self._output.call(piece.name, piece.arguments)

    def _ended(self, done: Done) -> ModelResponse:
        is_cut = status_of(done) == "incomplete"
        return self._told(
            status=status_of(done),
            completed_at=None if is_cut else int(time.time()),
            incomplete_details=Incomplete() if is_cut else None,
            usage=usage(done.counts),
        )

    def _told(self, **changes: object) -> ModelResponse:
        return self._response.model_copy(update={"output": self._output.items, **changes})

    def _numbered(self, events: list[StreamEvent]) -> list[StreamEvent]:
        for event in events:
            event.sequence_number = next(self._numbers)
        return events


def status_of(done: Done) -> Status:
    return "incomplete" if done.finish_reason == "length" else "completed"


def usage(counts: Counts) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=counts.prompt_tokens,
        input_tokens_details=InputDetails(cached_tokens=counts.cached_tokens),
        output_tokens=counts.completion_tokens,
        total_tokens=counts.prompt_tokens + counts.completion_tokens,
    )


def asked(body: ResponseRequest) -> dict[str, Any]:
    """What a response repeats of its request: fields of `Asked`."""
    as_they_are = body.model_dump(include=Asked.model_fields.keys() - {"text", "tools", "tool_choice"})
    return as_they_are | {
        "text": body.text.repeated(),
        "tools": [tool.repeated() for tool in body.tools],
        "tool_choice": choice_repeated(body.tool_choice),
    }
