"""Errors as the `openai` client reads them. What is wrong, and the way out, is said in the same words as elsewhere."""

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel

from service.errors import DeadlineExceeded, EngineFailed, ServiceError

Type = Literal["invalid_request_error", "rate_limit_error", "server_error"]

RETRIES = "x-should-retry"
"""Header that tells the official client whether to try again; by itself it does so after any status from 500 on."""

CODES = {
    "context_too_long": "context_length_exceeded",
    "queue_full": "rate_limit_exceeded",
    "unauthorized": "invalid_api_key",
}
"""Those that clients look for, by ours; any other is the same in both."""


class Error(BaseModel):
    """Why a request is not answered. `code` is stable, `param` names what of the request is at fault."""

    message: str
    type: Type
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """An error as a whole answer, or as an event of a stream that fails half-way."""

    error: Error


def is_spoken_on(path: str) -> bool:
    """Whether errors of a path have this form: under /v1 our own route alone has another."""
    return path.startswith("/v1/") and path != "/v1/chat"


def way_to(path: str) -> str:
    """The end of a sentence for a client that looks for OpenAI's API at a path that is not there; else empty."""
    looks = "v1" in path.split("/") or path.rstrip("/").endswith(("/completions", "/responses", "/models"))
    there = "POST /v1/chat/completions, POST /v1/completions, POST /v1/responses and GET /v1/models"
    return f"; of OpenAI's API there are {there}" if looks else ""


def headers(error: ServiceError) -> dict[str, str]:
    """What took too long once, or broke the engine, would do so three times, and at others' cost."""
    return {RETRIES: "false"} if isinstance(error, DeadlineExceeded | EngineFailed) else {}


def body(error: ServiceError) -> ErrorBody:
    """What is sent of `error`."""
    return ErrorBody(
        error=Error(
            message=error.message,
            type=_type(error.status),
            param=error.field,
            code=CODES.get(error.code, error.code),
        )
    )


def _type(status: int) -> Type:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
