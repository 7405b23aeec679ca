"""POST /v1/completions: goes on with texts as they are, for clients of OpenAI's older API and what measures models."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.api import openapi
from service.api.answer import respond
from service.api.body import json_body
from service.api.health import Identity
from service.api.openai.completions.chats import echoed, to_chats
from service.api.openai.completions.completion import Completion
from service.api.openai.completions.prompts import apart
from service.api.openai.completions.request import CompletionRequest
from service.api.openai.completions.writer import CompletionWriter
from service.api.openai.limits import require_room
from service.api.openai.models import require_model
from service.chat.choices import together, variants
from service.chat.generation import Generation
from service.chat.preparation import Shared
from service.log import note
from service.settings import Settings

STREAMED = """\
data: {"id": "cmpl-5f0c…", …, "choices": [{"index": 0, "text": " blue", …}]}

data: {"id": "cmpl-5f0c…", …, "choices": [{"index": 0, "text": "", "finish_reason": "length", …}]}

data: [DONE]
"""
ANSWERS: openapi.Answers = {
    200: {
        "description": "The whole answers; with stream, an event for each piece of them (CompletionChunk), then "
        "[DONE]. A stream that fails has an event with an ErrorBody.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAMED}},
    },
    **openapi.openai_errors(400, 404, 408, 413, 415, 429, 503, 504),
}


def router(generation: Callable[[], Generation], identity: Identity, settings: Settings) -> APIRouter:
    """The route, for the model that `generation` gives (it raises NotReady while there is none)."""
    routes = APIRouter()
    parse: Callable[[Request], Awaitable[CompletionRequest]] = json_body(
        CompletionRequest, settings.max_body_bytes, settings.body_timeout
    )

    @routes.post(
        "/v1/completions",
        response_model=Completion,
        responses=ANSWERS,
        openapi_extra=openapi.json_body("CompletionRequest"),
        summary="Go on with a text as it is, for clients of OpenAI's API.",
    )
    async def completions(request: Request, body: Annotated[CompletionRequest, Depends(parse)]) -> Response:
        model = generation()  # before the name is looked at: until it is loaded none is known
        require_model(body.model, identity.model)
        prompts = apart(body.prompt)
        require_room(body.n, model.max_running + settings.max_queue, prompts=len(prompts))
        if body.user:
            note(user=body.user)
        contents = [content for _, content in prompts]
        writer = CompletionWriter(
            identity,
            body.stream_options,
            reports=body.logprobs is not None,
            choices=body.n,
            decode_errors=model.decode_errors,
            echo=echoed(body, contents),
        )
        shared = Shared() if len(prompts) > 1 else None
        chats = [each for chat in to_chats(body, prompts) for each in variants(chat, body.n, shared)]
        pieces = together([model.stream(chat) for chat in chats])
        logged = list(map(str, contents)) if settings.log_prompts else None
        return await respond(request, pieces, writer, stream=body.stream, logged_prompts=logged, choices=len(chats))

    return routes
