"""POST /v1/responses: the same answers as from /v1/chat, for clients of OpenAI's newer API."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.api import openapi
from service.api.answer import respond
from service.api.body import json_body
from service.api.health import Identity
from service.api.openai.limits import DEFAULT_NEW_TOKENS, require_an_end
from service.api.openai.logprobs import reported
from service.api.openai.models import require_model
from service.api.openai.offering import offer_of
from service.api.openai.prompt import Prompt, prompt_of
from service.api.openai.responses.items import turns
from service.api.openai.responses.request import LOGPROBS, ResponseRequest
from service.api.openai.responses.response import ModelResponse
from service.api.openai.responses.writer import ResponseWriter
from service.api.response_format import kept_to
from service.chat.endings import FieldNames
from service.chat.form import Form
from service.chat.generation import Chat, Generation
from service.log import note
from service.settings import Settings

FORMAT = "text.format"
FIELDS = FieldNames(prompt="input", max_new_tokens="max_output_tokens")

STREAMED = """\
event: response.created
data: {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_5f0c…", …}}

event: response.output_text.delta
data: {"type": "response.output_text.delta", "sequence_number": 4, "delta": "Hello", …}

event: response.completed
data: {"type": "response.completed", "sequence_number": 9, "response": {…}}

data: [DONE]
"""
ANSWERS: openapi.Answers = {
    200: {
        "description": "The whole answer; with stream, its events under their names, then [DONE]. A stream that fails "
        "ends in response.failed.",
        "content": {"text/event-stream": {"schema": {"type": "string"}, "example": STREAMED}},
    },
    **openapi.openai_errors(400, 404, 408, 413, 415, 429, 503, 504),
}


def router(generation: Callable[[], Generation], identity: Identity, settings: Settings) -> APIRouter:
    """The route, for the model that `generation` gives (it raises NotReady while there is none)."""
    routes = APIRouter()
    parse: Callable[[Request], Awaitable[ResponseRequest]] = json_body(
        ResponseRequest, settings.max_body_bytes, settings.body_timeout
    )

    @routes.post(
        "/v1/responses",
        response_model=ModelResponse,
        responses=ANSWERS,
        openapi_extra=openapi.json_body("ResponseRequest"),
        summary="Answer a chat, for clients of OpenAI's newer API.",
    )
    async def responses(request: Request, body: Annotated[ResponseRequest, Depends(parse)]) -> Response:
        model = generation()  # before the name is looked at: until it is loaded none is known
        require_model(body.model, identity.model)
        if user := body.user or body.safety_identifier:
            note(user=user)
        said = turns(body.instructions, body.input)
        prompt = prompt_of(
            said,
            [(f"tools.{at}", tool) for at, tool in enumerate(body.tools)],
            body.tool_choice,
            thinking=body.thinking,
            calls_tools=model.calls_tools,
            ignores_tools=settings.ignore_tools,
        )
        writer = ResponseWriter(identity, body)
        logged = [said[-1].content] if settings.log_prompts else None
        with prompt.blamed("input"):
            pieces = model.stream(to_chat(body, prompt))
            return await respond(request, pieces, writer, stream=body.stream, logged_prompts=logged)

    return routes


def to_chat(body: ResponseRequest, prompt: Prompt) -> Chat:
    """The wire's fields as the use case has them. Raises InvalidRequest for fields that exclude each other."""
    wanted = body.max_output_tokens
    may_call = offer_of(prompt.tools, body.tool_choice, thinking=body.thinking)
    form = form_of(body)
    moved_by = ["ignore_eos"] if body.ignore_eos else []
    require_an_end(moved_by, may_call=may_call is not None, form=form)
    return Chat(
        prompt=prompt.messages,
        sampling=body.sampling(),
        max_new_tokens=wanted or DEFAULT_NEW_TOKENS,
        or_what_fits=wanted is None,
        ignore_eos=body.ignore_eos,
        form=form,
        offer=may_call,
        logprobs=reported(
            body.top_logprobs,
            wanted or DEFAULT_NEW_TOKENS,
            switch="include",
            is_on=LOGPROBS in body.include,
            stream=body.stream,
        ),
        fields=FIELDS,
    )


def form_of(body: ResponseRequest) -> Form | None:
    """What the answer must be; None for any text. Raises InvalidRequest as `kept_to`."""
    schema = body.text.format.schema_of_json
    if schema is None:
        return None
    return kept_to(Form(FORMAT, f"{FORMAT}.schema", schema), thinking=body.thinking)
