"""Errors as answers: every one says what was wrong, where, and the way out.

They are RFC 9457 problem documents, and on the routes of OpenAI's API what its clients read.
"""

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware

from service.api.disconnect import ClientGoneError
from service.api.middleware import shown_method, shown_path
from service.api.openai import errors as openai_errors
from service.errors import ServiceError
from service.log import note

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def document(error: ServiceError) -> dict[str, object]:
    """The problem document of an error, also sent inside a stream that fails half-way."""
    body: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    if error.field:
        body["field"] = error.field
    return body


def response(error: ServiceError, path: str) -> JSONResponse:
    """The error as the clients of `path` expect it, with Retry-After where waiting helps and the scheme where a key is
    asked for."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if openai_errors.is_spoken_on(path):
        headers |= openai_errors.headers(error)
        return JSONResponse(openai_errors.body(error).model_dump(), error.status, headers)
    return JSONResponse(document(error), error.status, headers, MEDIA_TYPE)


async def on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    note(problem=error.code)
    return response(error, request.scope["path"])


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself answers: 404 and 405."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    way = openai_errors.way_to(path) if error.status_code == HTTPStatus.NOT_FOUND else ""
    refusal = ServiceError(f"{shown_method(request.method)} {shown_path(path)}: {error.detail}{way}")
    refusal.status, refusal.code = error.status_code, "http_error"
    answer = response(refusal, path)
    answer.headers.update(error.headers or {})
    return answer


async def on_client_gone(_: Request, __: Exception) -> Response:
    """Nobody reads this answer; the status is for the log and the metrics (nginx's "client closed request")."""
    return Response(status_code=499)


async def on_bug(request: Request, error: Exception) -> Response:
    """Anything unforeseen: logged in full, answered without details of the inside."""
    logger.error("unhandled error", exc_info=error)
    hidden = ServiceError("an internal error; the log has it under this answer's X-Request-Id")
    answer = response(hidden, request.scope["path"])
    # The error goes on to uvicorn, which then ends the connection: no client may send a next request into it.
    answer.headers["Connection"] = "close"
    return answer


def install(app: FastAPI) -> None:
    """To be called before the middleware that gives ids is added, which then sees bugs answered and counts them."""
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientGoneError, on_client_gone)
    app.add_middleware(ServerErrorMiddleware, handler=on_bug)
