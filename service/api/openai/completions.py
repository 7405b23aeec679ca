"""POST /v1/chat/completions: the same answers as from /v1/chat, for clients of OpenAI's API."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.api import openapi
from service.api.answer import respond
from service.api.body import json_body
from service.api.health import Identity
from service.api.openai.answer import CompletionWriter
from service.api.openai.completion import Completion
from service.api.openai.conversation import conversation, field_of
from service.api.openai.models import require_model
from service.api.openai.offering import offer_of, offered
from service.api.openai.request import DEFAULT_NEW_TOKENS, LOGPROBS_IN_ONE_PIECE, CompletionRequest
from service.chat.choices import side_by_side, variants
from service.chat.endings import FieldNames
from service.chat.generation import Chat, Generation
from service.chat.templates import Message
from service.chat.tools.offer import Tool
from service.errors import InvalidRequest, MessageRefused
from service.log import note
from service.settings import Settings

FIELDS = FieldNames(messages="messages")

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
    parse: Callable[[Request], Awaitable[CompletionRequest]] = json_body(
        CompletionRequest, settings.max_body_bytes, settings.body_timeout
    )

    @routes.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses=ANSWERS,
        openapi_extra=openapi.json_body("CompletionRequest"),
        summary="Answer a chat, for clients of OpenAI's API.",
    )
    async def completions(request: Request, body: Annotated[CompletionRequest, Depends(parse)]) -> Response:
        model = generation()  # before the name is looked at: until it is loaded none is known
        require_model(body.model, identity.model)
        if user := body.user or body.safety_identifier:
            note(user=user)
        writer = CompletionWriter(identity, body.stream_options, reports=body.logprobs)
        logged = body.messages[-1].content if settings.log_prompts else None
        tools = offered(body, are_called=model.calls_tools, are_ignored=settings.ignore_tools)
        messages = conversation(body, tools)
        try:
            chats = variants(to_chat(body, [message for _, message in messages], tools), body.n)
            pieces = side_by_side([model.stream(chat) for chat in chats]) if body.n > 1 else model.stream(*chats)
            return await respond(request, pieces, writer, stream=body.stream, logged_prompt=logged, choices=body.n)
        except MessageRefused as refusal:
            refusal.field = field_of(refusal.index, messages)
            raise

    return routes


def to_chat(body: CompletionRequest, messages: list[Message], tools: list[Tool]) -> Chat:
    """The wire's fields as the use case has them. Raises InvalidRequest for fields that exclude each other."""
    if "stream_options" in body.model_fields_set and not body.stream:
        raise InvalidRequest("stream_options is for streams; leave it out, or set stream", field="stream_options")
    schema, may_call = body.answer_schema(), offer_of(tools, body.tool_choice)
    if body.ignore_eos and (schema is not None or may_call):
        other = "tools" if may_call else "response_format"
        raise InvalidRequest(
            f"ignore_eos goes on past the answer's end, and {other} allows nothing there; send one of them",
            field="ignore_eos",
        )
    if body.thinking and may_call and may_call.demanded:
        raise InvalidRequest(
            "thinking writes its reasoning into the answer, and tool_choice allows nothing but a call there; "
            "send one of them",
            field="tool_choice",
        )
    wanted = new_tokens(body)
    return Chat(
        messages=messages,
        sampling=body.sampling(),
        max_new_tokens=wanted or DEFAULT_NEW_TOKENS,
        or_what_fits=wanted is None,
        stop=body.stop,
        ignore_eos=body.ignore_eos,
        schema=schema,
        offer=may_call,
        logprobs=reported(body, wanted or DEFAULT_NEW_TOKENS),
        fields=FIELDS._replace(max_new_tokens=body.limit_name, grammar="tools" if may_call else FIELDS.grammar),
    )


def reported(body: CompletionRequest, new_tokens: int) -> int | None:
    """How many of the likeliest tokens each one of up to `new_tokens` is reported beside; None: without a report.
    Raises InvalidRequest for likeliest tokens without logprobs, and for too many in one piece."""
    if not body.logprobs:
        if body.top_logprobs:
            raise InvalidRequest("top_logprobs is told with logprobs; set that, or leave it out", field="top_logprobs")
        return None
    count = body.n * new_tokens * (1 + body.top_logprobs)
    if count > LOGPROBS_IN_ONE_PIECE and not body.stream:
        raise InvalidRequest(
            f"{body.n} x {new_tokens} tokens with {body.top_logprobs} of the likeliest beside each may be {count} "
            f"log-probabilities, and at most {LOGPROBS_IN_ONE_PIECE} are sent in one piece: ask for fewer, "
            "or for a stream",
            field="top_logprobs" if body.top_logprobs else "logprobs",
        )
    return body.top_logprobs


def new_tokens(body: CompletionRequest) -> int | None:
    """The limit under either of its names. Raises InvalidRequest for two limits."""
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest(
            "max_tokens and max_completion_tokens are two names of one limit; send one of them", field="max_tokens"
        )
    return limits.pop() if limits else None
