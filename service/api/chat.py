"""POST /v1/chat: the wire's fields become a Chat, the answer becomes one JSON object or a stream of events."""

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from service.api import openapi, sse
from service.api.body import json_body
from service.api.disconnect import until_disconnect
from service.api.schema import DEFAULT_SYSTEM, ChatRequest, ChatResponse, Delta, FinalDelta, Usage
from service.chat.generation import Chat, Done, Generation, TextDelta
from service.chat.templates import Message
from service.chat.thinking import THINKING_SYSTEM_PROMPT
from service.engine.base import SamplingParams
from service.errors import InvalidRequest, MessageRefused
from service.log import request_id
from service.settings import Settings

logger = logging.getLogger(__name__)

Pieces = AsyncGenerator[TextDelta | Done]

STREAMED = """\
data: {"id": "5f0c…", "delta": "Hello"}

data: {"id": "5f0c…", "delta": "", "response": "Hello", "status": 200, "time": "…", …}

data: [DONE]
"""
DESCRIPTION = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": openapi.reference("ChatRequest")}}}
}
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
        "/v1/chat", response_model=ChatResponse, responses=ANSWERS, openapi_extra=DESCRIPTION, summary="Answer a chat."
    )
    async def chat(request: Request, body: Annotated[ChatRequest, Depends(parse)]) -> Response:
        pieces = generation().stream(to_chat(body))
        transcript = Transcript(body.prompt if settings.log_prompts else None)
        try:
            if body.stream:
                first = await until_disconnect(request.receive, first_of(pieces))
                return sse.EventStream(first, pieces, partial(encode, transcript))
            return JSONResponse(await until_disconnect(request.receive, collect(pieces, transcript)))
        except MessageRefused as refusal:
            refusal.field = field_of(refusal.index, body)
            raise

    return routes


def to_chat(body: ChatRequest) -> Chat:
    """The wire's fields as the use case has them. Raises InvalidRequest for fields that exclude each other."""
    if body.thinking and body.system is not None:
        raise InvalidRequest("thinking is a system prompt of its own; send either thinking or system", field="thinking")
    return Chat(
        messages=[message for _, message in conversation(body)],
        sampling=SamplingParams(
            temperature=body.temperature,
            top_k=body.top_k,
            top_p=body.top_p,
            repetition_penalty=body.repetition_penalty,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
        ),
        max_new_tokens=body.max_new_tokens,
        stop=body.stop,
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


class Transcript:
    """The answer so far. With a prompt given, both are logged when the answer is whole."""

    def __init__(self, logged_prompt: str | None) -> None:
        self.id = request_id.get()
        self._prompt = logged_prompt
        self._texts: list[str] = []

    def add(self, piece: TextDelta) -> Delta:
        self._texts.append(piece.text)
        return Delta(id=self.id, delta=piece.text)

    def finish(self, done: Done) -> ChatResponse:
        response = "".join(self._texts)
        if self._prompt is not None:
            logger.info("answered", extra={"fields": {"prompt": self._prompt, "response": response}})
        return ChatResponse(
            response=response,
            time=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
            id=self.id,
            finish_reason=done.finish_reason,
            usage=Usage(
                prompt_tokens=done.prompt_tokens,
                completion_tokens=done.completion_tokens,
                cached_tokens=done.cached_tokens,
            ),
        )


async def first_of(pieces: Pieces) -> TextDelta | Done:
    """The first piece, before which nothing is sent: what fails until then is answered with its own status."""
    return await anext(pieces)


async def collect(pieces: Pieces, transcript: Transcript) -> dict[str, object]:
    """The whole answer as one object; it is over, and counted, before it is sent."""
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, Done):
                return transcript.finish(piece).model_dump()
            transcript.add(piece)
    raise AssertionError("an answer ends in Done or raises")


def encode(transcript: Transcript, piece: TextDelta | Done) -> bytes:
    if isinstance(piece, TextDelta):
        return sse.event(transcript.add(piece))
    return sse.event(FinalDelta(**transcript.finish(piece).model_dump()))
