"""POST /v1/chat/completions: the same answers as from /v1/chat, for clients of OpenAI's API."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.api import openapi
from service.api.answer import respond
from service.api.body import json_body
from service.api.health import Identity
from service.api.openai.chat_completions.completion import ChatCompletion
from service.api.openai.chat_completions.messages import turns
from service.api.openai.chat_completions.request import ChatCompletionRequest
from service.api.openai.chat_completions.writer import ChatCompletionWriter
from service.api.openai.limits import DEFAULT_NEW_TOKENS, require_a_stream, require_an_end, require_room
from service.api.openai.logprobs import reported
from service.api.openai.models import require_model
from service.api.openai.offering import offer_of, require_callable
from service.api.openai.prompt import Prompt, prompt_of
from service.chat.choices import together, variants
from service.chat.endings import FieldNames
from service.chat.generation import Chat, Generation
from service.errors import InvalidRequest
from service.log import note
from service.settings import Settings

FIELDS = FieldNames(prompt="messages")

STREAMED = """\
data: {"id": "chatcmpl-5f0c…", …, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}, …}]}

data: {"id": "chatcmpl-5f0c…", …, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", …}]}

data: [DONE]
"""
ANSWERS: openapi.Answers = {
    200: {
        "description": "The whole answer; with stream, an event for each piece of it (Chunk), then [DONE]. A stream "
        "that fails has an event with an ErrorBody.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAMED}},
    },
    **openapi.openai_errors(400, 404, 408, 413, 415, 429, 503, 504),
}


def router(generation: Callable[[], Generation], identity: Identity, settings: Settings) -> APIRouter:
    """The route, for the model that `generation` gives (it raises NotReady while there is none)."""
    routes = APIRouter()
    parse: Callable[[Request], Awaitable[ChatCompletionRequest]] = json_body(
        ChatCompletionRequest, settings.max_body_bytes, settings.body_timeout
    )

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses=ANSWERS,
        openapi_extra=openapi.json_body("ChatCompletionRequest"),
        summary="Answer a chat, for clients of OpenAI's API.",
    )
    async def completions(request: Request, body: Annotated[ChatCompletionRequest, Depends(parse)]) -> Response:
        model = generation()  # before the name is looked at: until it is loaded none is known
        require_model(body.model, identity.model)
        require_room(body.n, model.max_running + settings.max_queue)
        if user := body.user or body.safety_identifier:
            note(user=user)
        prompt = prompt_of(
            turns(body.messages),
            [(f"tools.{at}.function", tool.function) for at, tool in enumerate(body.tools)],
            body.tool_choice,
            thinking=body.thinking,
            calls_tools=model.calls_tools,
            ignores_tools=settings.ignore_tools,
        )
        writer = ChatCompletionWriter(identity, body.stream_options, reports=body.logprobs, choices=body.n)
        logged = [body.messages[-1].content] if settings.log_prompts else None
        with prompt.blamed("messages"):
            chats = variants(to_chat(body, prompt), body.n)
            pieces = together([model.stream(chat) for chat in chats])
            return await respond(request, pieces, writer, stream=body.stream, logged_prompts=logged, choices=body.n)

    return routes


def to_chat(body: ChatCompletionRequest, prompt: Prompt) -> Chat:
    """The wire's fields as the use case has them. Raises InvalidRequest for fields that exclude each other."""
    require_a_stream(has_options="stream_options" in body.model_fields_set, stream=body.stream)
    form = body.answer_form(thinking=body.thinking)
    may_call = offer_of(prompt.tools, body.tool_choice, thinking=body.thinking)
    require_callable(may_call, form)
    require_an_end(body.end_is_moved_by, may_call=may_call is not None, form=form)
    wanted = new_tokens(body)
    return Chat(
        prompt=prompt.messages,
        sampling=body.sampling(),
        max_new_tokens=wanted or DEFAULT_NEW_TOKENS,
        or_what_fits=wanted is None,
        stop=body.stop,
        stop_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        form=form,
        offer=may_call,
        logprobs=reported(
            body.top_logprobs,
            body.n * (wanted or DEFAULT_NEW_TOKENS),
            switch="logprobs",
            is_on=body.logprobs,
            stream=body.stream,
        ),
        fields=FIELDS._replace(max_new_tokens=body.limit_name),
    )


def new_tokens(body: ChatCompletionRequest) -> int | None:
    """The limit under either of its names. Raises InvalidRequest for two limits."""
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens are two names of one limit; send one of them", field="max_tokens"
        )
    return limits.pop() if limits else None
