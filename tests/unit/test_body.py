"""Bodies made to keep the event loop busy: long ones take turns with everybody else, complaints are few."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, model_validator
from starlette.requests import Request
from starlette.types import Message

from service.api.body import LONG_BODY_BYTES, json_body
from service.api.openai.chat_completions.request import ChatCompletionRequest
from service.api.openai.responses.request import ResponseRequest
from service.api.schema import ChatRequest, Turn

MANY = {f"field_{number}": number for number in range(1000)}


def request_of(body: bytes) -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


async def test_between_two_long_bodies_everybody_else_has_a_turn() -> None:
    turns, seen = 0, []

    class Noting(BaseModel):
        text: str

        @model_validator(mode="after")
        def note(self) -> "Noting":
            seen.append(turns)
            return self

    async def everybody_else() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    parse = json_body(Noting, max_bytes=10 * LONG_BODY_BYTES, timeout=60)
    others = asyncio.create_task(everybody_else())
    body = json.dumps({"text": "x" * LONG_BODY_BYTES}).encode()
    await asyncio.gather(*(parse(request_of(body)) for _ in range(8)))
    others.cancel()
    assert len(set(seen)) == 8


@pytest.mark.parametrize(
    ("model", "value"),
    [(ChatRequest, {"prompt": "a"} | MANY), (ChatRequest, {"prompt": "a", "history": [MANY]}), (Turn, MANY)],
    ids=["request", "turn of a request", "turn"],
)
def test_of_a_thousand_unknown_fields_one_is_named(model: type[BaseModel], value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate(value, strict=True)
    unknown = [error["loc"][-1] for error in refused.value.errors() if error["type"] == "extra_forbidden"]
    assert unknown == ["field_0"]


@pytest.mark.parametrize("asked", [ChatCompletionRequest, ResponseRequest])
def test_of_a_thousand_wrong_names_in_the_metadata_none_is_looked_at(asked: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as refused:
        asked.model_validate({"metadata": MANY}, strict=True)
    (complaint,) = [error for error in refused.value.errors() if error["loc"][0] == "metadata"]
    assert "it has 1000 names; at most 16 are taken" in complaint["msg"]


def test_a_request_with_every_field_is_taken() -> None:
    every = ChatRequest(prompt="a", system="b", history=[Turn(role="user", content="c")], max_new_tokens=1, seed=1)
    assert ChatRequest.model_validate(every.model_dump(), strict=True) == every
