"""POST /v1/completions: goes on with texts as they are, for clients of OpenAI's older API and what measures models."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.api import openapi
from service.api.answer import respond
from service.api.body import json_body
from service.api.health import Identity
from service.api.openai.completions.completion import Completion
from service.api.openai.completions.prompts import apart
from service.api.openai.completions.request import DEFAULT_NEW_TOKENS, CompletionRequest
from service.api.openai.completions.writer import CompletionWriter
from service.api.openai.limits import require_a_stream, require_an_end, require_room
from service.api.openai.logprobs import reported
from service.api.openai.models import require_model
from service.chat.choices import together, variants
from service.chat.endings import FieldNames
from service.chat.generation import Chat, Generation
from service.chat.verbatim import Verbatim
from service.errors import InvalidRequest
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
        writer = CompletionWriter(
            identity,
            body.stream_options,
            reports=body.logprobs is not None,
            choices=body.n,
            decode_errors=model.decode_errors,
        )
        logged = str(prompts[-1][1]) if settings.log_prompts else None
        chats = [chat for prompt in prompts for chat in variants(to_chat(body, *prompt, len(prompts)), body.n)]
        pieces = together([model.stream(chat) for chat in chats])
        return await respond(request, pieces, writer, stream=body.stream, logged_prompt=logged, choices=len(chats))

    return routes


def to_chat(body: CompletionRequest, field: str, content: str | list[int], prompts: int) -> Chat:
    """The wire's fields as the use case has them, for one of so many prompts, which comes from `field`. Raises
    InvalidRequest for fields that exclude each other."""
    require_a_stream(has_options="stream_options" in body.model_fields_set, stream=body.stream)
    schema = body.answer_schema()
    tokens = body.max_tokens or DEFAULT_NEW_TOKENS
    if body.echo and body.logprobs is not None:
        require_plain(body)
        tokens += len(content)
    if body.ignore_eos:
        require_an_end(may_call=False, is_json=schema is not None, form="response_format")
    return Chat(
        prompt=Verbatim(content, begins=body.add_special_tokens),
        sampling=body.sampling(),
        max_new_tokens=body.max_tokens or DEFAULT_NEW_TOKENS,
        or_what_fits=body.max_tokens is None,
        stop=body.stop,
        ignore_eos=body.ignore_eos,
        schema=schema,
        logprobs=reported(
            body.logprobs or 0,
            prompts * body.n * tokens,
            switch="logprobs",
            is_on=body.logprobs is not None,
            stream=body.stream,
            count_field="logprobs",
        ),
        echo=body.echo,
        fields=FieldNames(prompt=field, max_new_tokens="max_tokens", prompt_is="prompt"),
    )


def require_plain(body: CompletionRequest) -> None:
    """Raises InvalidRequest for what would take a prompt that is reported, which the model says again, for its answer's
    beginning."""
    for field in ("response_format", "frequency_penalty", "presence_penalty"):
        if getattr(body, field):
            raise InvalidRequest(f"echo with logprobs goes without {field}; send one of them", field=field)
