"""POST /v1/chat: the wire's fields become a Chat, the answer becomes one JSON object or a stream of events."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from service.api import openapi, sse
from service.api.answer import Answer, respond
from service.api.body import json_body
from service.api.schema import (
    DEFAULT_NEW_TOKENS,
    DEFAULT_SYSTEM,
    ChatRequest,
    ChatResponse,
    Delta,
    FinalDelta,
    Usage,
)
from service.chat.generation import Chat, Generation
from service.chat.pieces import Delta as Piece
from service.chat.pieces import Done, TextDelta
from service.chat.templates import Message
from service.chat.thinking import THINKING_SYSTEM_PROMPT
from service.errors import InvalidRequest, MessageRefused, ServiceError
from service.log import request_id
from service.settings import Settings

STREAMED = """\
data: {"id": "5f0c…", "delta": "Hello"}

data: {"id": "5f0c…", "delta": "", "response": "Hello", "status": 200, "time": "…", …}

data: [DONE]
"""
ANSWERS: openapi.Answers = {
    200: {
        "description": "The whole answer; with stream, an event for each piece of it (Delta), one with everything the "
        "whole answer has (FinalDelta), then [DONE]. A stream that fails has an event named error with a Problem.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAMED}},
    },
    **openapi.problems(400, 408, 413, 415, 429, 503, 504),
}


def router(generation: Callable[[], Generation], settings: Settings) -> APIRouter:
    """The route, for the model that `generation` gives (it raises NotReady while there is none)."""
    routes = APIRouter()
    parse: Callable[[Request], Awaitable[ChatRequest]] = json_body(
        ChatRequest, settings.max_body_bytes, settings.body_timeout
    )

    @routes.post(
        "/v1/chat",
        response_model=ChatResponse,
        responses=ANSWERS,
        openapi_extra=openapi.json_body("ChatRequest"),
        summary="Answer a chat.",
    )
    async def chat(request: Request, body: Annotated[ChatRequest, Depends(parse)]) -> Response:
        pieces = generation().stream(to_chat(body))
        logged = [body.prompt] if settings.log_prompts else None
        try:
            return await respond(request, pieces, ChatWriter(), stream=body.stream, logged_prompts=logged)
        except MessageRefused as refusal:
            refusal.field = field_of(refusal.index, body)
            raise

    return routes


def to_chat(body: ChatRequest) -> Chat:
    """The wire's fields as the use case has them. Raises InvalidRequest for fields that exclude each other."""
    if body.thinking and body.system is not None:
        raise InvalidRequest("thinking is a system prompt of its own; send either thinking or system", field="thinking")
    return Chat(
        prompt=[message for _, message in conversation(body)],
        sampling=body.sampling(),
        max_new_tokens=body.max_new_tokens or DEFAULT_NEW_TOKENS,
        or_what_fits=body.max_new_tokens is None,
        stop=body.stop,
        form=body.answer_form(thinking=body.thinking),
    )


def conversation(body: ChatRequest) -> list[tuple[str, Message]]:
    """Its messages, each with the field of the body that it comes from, named as in `body.json_body`'s problems."""
    system = THINKING_SYSTEM_PROMPT if body.thinking else DEFAULT_SYSTEM if body.system is None else body.system
    named = [("thinking" if body.thinking else "system", Message("system", system))] if system else []
    named += [(f"history.{at}", Message(turn.role, turn.content)) for at, turn in enumerate(body.history)]
    return [*named, ("prompt", Message("user", body.prompt))]


def field_of(index: int | None, body: ChatRequest) -> str:
    """The field that a message of the conversation comes from; for all of them (None), where the client can mend it."""
    if index is None:
        return "history" if body.history else "prompt"
    return conversation(body)[index][0]


class ChatWriter:
    """Writes answers as the original contract has them."""

    def __init__(self) -> None:
        self._id = request_id.get()

    def delta(self, piece: Piece) -> list[Delta]:
        assert isinstance(piece, TextDelta), "no tools are offered here"
        return [Delta(id=self._id, delta=piece.text)]

    def last(self, response: str, done: Done) -> list[FinalDelta]:
        return [FinalDelta(**self.whole([Answer(response, done)]).model_dump())]

    def behind(self, answers: Sequence[Answer]) -> list[BaseModel]:
        return []

    def whole(self, answers: Sequence[Answer]) -> ChatResponse:
        ((response, done, _),) = answers
        return ChatResponse(
            response=response,
            time=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            id=self._id,
            finish_reason=done.finish_reason,
            usage=Usage(**done.counts._asdict()),
        )

    def error(self, problem: ServiceError) -> bytes:
        return sse.error(problem)
