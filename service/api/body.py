"""Reading a JSON body that anybody may have sent: bounded in bytes and time, strict in types, never a 500."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from service.api.disconnect import ClientGoneError
from service.errors import BodyTimeout, BodyTooLarge, InvalidRequest, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

SHOWN_CHARACTERS = 60
LONGEST_FIELD = 200
LONG_BODY_BYTES = 100_000
"""Megabytes of JSON keep the event loop busy for tenths of a second: such bodies are parsed one at a time, with a turn
for everybody else in between."""


def json_body(model: type[Model], max_bytes: int, timeout: float) -> Callable[[Request], Awaitable[Model]]:
    """A FastAPI dependency that gives the request's body as `model`.

    Raises UnsupportedMediaType, BodyTooLarge, BodyTimeout or InvalidRequest, naming the field, and ClientGoneError.
    """

    one_at_a_time = asyncio.Lock()

    async def parse(request: Request) -> Model:
        _require_json(request)
        _require_length(request, max_bytes)
        body = await _read(request, max_bytes, timeout)
        if len(body) > LONG_BODY_BYTES:
            async with one_at_a_time:
                await asyncio.sleep(0)
                return _validate(model, _decode(body))
        return _validate(model, _decode(body))

    return parse


def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType(
            f"the body's Content-Type is {media_type or 'missing'!r}; send application/json "
            "(with curl: -H 'Content-Type: application/json')",
            field="Content-Type",
        )
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"the body's Content-Encoding is {encoding[:40]!r}; send it as it is", field="Content-Encoding"
        )


def _require_length(request: Request, max_bytes: int) -> None:
    """Before anything is read: to read is to invite a client that waits to be told whether it may send (Expect)."""
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body has more than {max_bytes} bytes, the most that is read", field="body")


async def _read(request: Request, max_bytes: int, timeout: float) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise BodyTimeout(f"the body was not complete after {timeout:g} s; send it at once", field="body") from None
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(body)


def _decode(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise InvalidRequest("the body's JSON is nested far deeper than any field here needs", field="body") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of more digits than Python will read
        raise InvalidRequest(f"the body is not JSON: {error}", field="body") from None


def _validate(model: type[Model], value: Any) -> Model:
    if not isinstance(value, dict):
        required = " and ".join(name for name, each in model.model_fields.items() if each.is_required())
        raise InvalidRequest(f"the body is a JSON {type(value).__name__}; send an object with {required}", field="body")
    try:
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        raise _first_complaint(model, error) from None


def tag(kind: str) -> str:
    """The tag of one member of a union: it tells members apart and is no field, so that complaints leave it out."""
    return f"\0{kind}"


def _first_complaint(model: type[BaseModel], error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    field = ".".join(part for part in parts if not part.startswith("\0"))[:LONGEST_FIELD] or "body"
    if first["type"] == "extra_forbidden":
        known = f"; known: {', '.join(model.model_fields)}" if len(first["loc"]) == 1 else ""
        return InvalidRequest(f"{field} is not a field of this request{known}", field=field)
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing; it is required", field=field)
    if first["type"] == "value_error":  # a sentence of ours
        return InvalidRequest(f"{field}: {first['msg'].removeprefix('Value error, ')}", field=field)
    return InvalidRequest(f"{field}: {first['msg']}{_shown(first['input'])}", field=field)


def _shown(value: object) -> str:
    """The offending value, when it is short enough to help and no container. Never echoes a prompt."""
    if isinstance(value, bool | int | float) and len(str(value)) <= SHOWN_CHARACTERS:
        return f" (got {value!r})"
    return f" (got {type(value).__name__})" if not isinstance(value, str) else ""
