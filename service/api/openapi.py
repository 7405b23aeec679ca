"""The OpenAPI document: what FastAPI finds by itself, and what it cannot know of bodies read and answers made here."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.openai.chat_completions.completion import Chunk, CountedChunk
from service.api.openai.chat_completions.request import ChatCompletionRequest
from service.api.openai.completions.completion import CompletionChunk, CountedCompletionChunk
from service.api.openai.completions.request import CompletionRequest
from service.api.openai.errors import CODES, ErrorBody
from service.api.openai.responses.request import ResponseRequest
from service.api.problems import MEDIA_TYPE
from service.api.schema import ChatRequest, Delta, FinalDelta, Problem
from service.errors import ServiceError

REFERENCE = "#/components/schemas/{model}"
BY_NAME = (
    *(ChatRequest, Delta, FinalDelta, Problem),
    *(ChatCompletionRequest, Chunk, CountedChunk),
    *(CompletionRequest, CompletionChunk, CountedCompletionChunk),
    *(ResponseRequest, ErrorBody),
)
"""Models that routes refer to with `reference`."""

Answers = dict[int | str, dict[str, Any]]


def reference(name: str) -> dict[str, str]:
    """The schema of one of `BY_NAME`."""
    return {"$ref": REFERENCE.format(model=name)}


def json_body(name: str) -> dict[str, Any]:
    """What a route says of its body, which is one of `BY_NAME`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference(name)}}}}


def problems(*statuses: int) -> Answers:
    """What a route's `responses` say of errors with these statuses."""
    content = {MEDIA_TYPE: {"schema": reference("Problem")}}
    return {status: {"description": _meaning(status), "content": content} for status in statuses}


def openai_errors(*statuses: int) -> Answers:
    """The same for a route of OpenAI's API."""
    content = {"application/json": {"schema": reference("ErrorBody")}}
    return {status: {"description": _meaning(status, CODES), "content": content} for status in statuses}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    built = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = built["components"]["schemas"]
    for model in BY_NAME:
        schema = model.model_json_schema(ref_template=REFERENCE)
        schemas |= {model.__name__: schema, **schema.pop("$defs", {})}
    return built


def _meaning(status: int, codes: Mapping[str, str] = {}) -> str:
    """Every error with this status: its code, or what `codes` make of it, and what it says of itself."""
    errors = [error for error in _errors(ServiceError) if error.status == status]
    return " ".join(f"{codes.get(e.code, e.code)}: {(e.__doc__ or '').splitlines()[0]}" for e in errors)


def _errors(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    for error in kind.__subclasses__():
        yield error
        yield from _errors(error)
