"""What a client of OpenAI's completions may send, field by field: every refusal names the field, nothing is ignored."""

import logging
from typing import Any

import httpx
import pytest

from service.api.openai.completions import unserved
from service.api.openai.completions.prompts import MOST_PROMPTS, MOST_TOKENS
from service.engine.fake import FakeScript
from tests.api.conftest import Service, Start

SCHEMA = {"type": "json_object"}


@pytest.fixture
async def service(start: Start) -> Service:
    """One whose context is short."""
    return await start(max_context=2048)


async def complete(service: Service, **body: Any) -> httpx.Response:
    return await service.http.post("/v1/completions", json={"prompt": "hello"} | body)


async def error_of(service: Service, **body: Any) -> dict[str, Any]:
    response = await complete(service, **body)
    assert response.status_code in (400, 404), response.text
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no prompt", {"prompt": None}, "prompt"),
    ("a number", {"prompt": 5}, "prompt"),
    ("an object", {"prompt": {}}, "prompt"),
    ("no prompts", {"prompt": []}, "prompt"),
    ("a prompt without tokens", {"prompt": ""}, "prompt"),
    ("one of several without tokens", {"prompt": ["hello", ""]}, "prompt.1"),
    ("no token ids", {"prompt": [[]]}, "prompt.0"),
    ("texts and token ids", {"prompt": ["hello", [1]]}, "prompt.1"),
    ("token ids and texts", {"prompt": [[1], "hello"]}, "prompt.1"),
    ("a text among token ids", {"prompt": [1, "hello"]}, "prompt.1"),
    ("half a token", {"prompt": [1, 2.5]}, "prompt.1"),
    ("a negative token", {"prompt": [1, -1]}, "prompt.1"),
    ("a truth for a token", {"prompt": [[1, True]]}, "prompt.0.1"),
    ("a token that the model has not", {"prompt": [1, 10**9]}, "prompt"),
    ("the same in one of several", {"prompt": [[1], [10**9]]}, "prompt.1"),
    ("a token beyond 64 bits", {"prompt": [10**30]}, "prompt"),
    ("a text longer than any context", {"prompt": "x" * 400_001}, "prompt"),
    ("texts longer than any context", {"prompt": ["x" * 300_000] * 2}, "prompt"),
    ("more tokens than are read", {"prompt": [1] * (MOST_TOKENS + 1)}, "prompt"),
    ("the same together", {"prompt": [[1] * MOST_TOKENS] * 2}, "prompt"),
    ("more prompts than are read", {"prompt": ["a"] * (MOST_PROMPTS + 1)}, "prompt"),
    ("a text longer than the context", {"prompt": ["hi", "a b" * 5000]}, "prompt.1"),
    ("a chat's messages", {"messages": []}, "messages"),
    ("thinking", {"thinking": True}, "thinking"),
    ("tools", {"tools": []}, "tools"),
    ("no tokens", {"max_tokens": 0}, "max_tokens"),
    ("more tokens than the context", {"max_tokens": 4000}, "max_tokens"),
    ("another name of the limit", {"max_completion_tokens": 5}, "max_completion_tokens"),
    ("logprobs as in chats", {"logprobs": True}, "logprobs"),
    ("more of the likeliest than are told", {"logprobs": 21}, "logprobs"),
    ("more log-probabilities than are sent at once", {"n": 16, "max_tokens": 2000, "logprobs": 20}, "logprobs"),
    ("no answers", {"n": 0}, "n"),
    ("more answers than are given", {"n": 17}, "n"),
    ("an empty stop", {"stop": ""}, "stop.0"),
    ("a stop token as text", {"stop_token_ids": ["5"]}, "stop_token_ids.0"),
    ("one without a list", {"stop_token_ids": 5}, "stop_token_ids"),
    ("a stop token that there is not", {"stop_token_ids": [5, 999_999]}, "stop_token_ids"),
    ("too many stop tokens", {"stop_token_ids": [5] * 17}, "stop_token_ids"),
    ("a form beside them", {"response_format": SCHEMA, "stop_token_ids": [5]}, "stop_token_ids"),
    ("a bias of a token that there is not", {"logit_bias": {"999999": 1}}, "logit_bias"),
    ("stream_options without a stream", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("an unknown stream option", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ("a form beside ignore_eos", {"response_format": SCHEMA, "ignore_eos": True}, "ignore_eos"),
    ("NUL in the user", {"user": "a\x00"}, "user"),
    ("another model", {"model": "gpt-4o"}, "model"),
]


@pytest.mark.parametrize(("body", "field"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
async def test_what_is_wrong_is_named(service: Service, body: dict[str, Any], field: str) -> None:
    error = await error_of(service, **body)
    assert error["param"] == field, error
    assert len(error["message"]) < 500


async def test_the_context_is_the_prompts_in_its_words(service: Service) -> None:
    error = await error_of(service, prompt="a b" * 5000)
    assert error["code"] == "context_length_exceeded"
    assert "Shorten the prompt" in error["message"]
    assert "conversation" not in error["message"]
    wanted = await error_of(service, max_tokens=4000)
    assert "shorten the prompt" in wanted["message"]


@pytest.mark.parametrize("name", unserved.OF_REQUEST)
async def test_what_is_not_served_is_refused_by_name_unless_it_asks_for_nothing(service: Service, name: str) -> None:
    for neutral in (*unserved.OF_REQUEST[name], None):
        assert (await complete(service, **{name: neutral})).status_code == 200
    error = await error_of(service, **{name: {"asks": "for something"}})
    assert error["param"] == name
    assert f"{name} is not served here; leave it out" in error["message"]


@pytest.mark.parametrize(("body", "status"), [({"n": 2}, 200), ({"n": 1}, 400), ({}, 400)])
async def test_of_so_many_answers_all_are_the_best(service: Service, body: dict[str, Any], status: int) -> None:
    assert (await complete(service, best_of=2, **body)).status_code == status


async def test_more_answers_than_there_is_room_for_are_refused_at_once(start: Start) -> None:
    service = await start(FakeScript(), max_running=2, max_queue=1)
    assert (await complete(service, prompt=["a", "b", "c"])).status_code == 200
    error = await error_of(service, prompt=["a", "b"], n=2)
    assert error["param"] == "prompt"
    assert "2 prompts have 4 answers, and at most 3 are answered or wait at once" in error["message"]


async def test_the_log_tells_whose_request_it_is_and_a_prompt_where_that_is_wanted(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start(log_prompts=True)
    with caplog.at_level(logging.INFO):
        assert (await complete(service, prompt=["a", "hello"], user="ann")).status_code == 200
    logged = [getattr(record, "fields", {}) for record in caplog.records]
    for text in ("a", "hello"):
        assert {"prompt": text, "response": text} in logged
    assert any(fields.get("user") == "ann" for fields in logged)


@pytest.mark.parametrize("text", ["a\x00b", "\x0c", "a\x1bb\x7f"])
async def test_any_character_may_stand_in_a_text(service: Service, text: str) -> None:
    """What the tokens of a benchmark's random prompt stand for, say, and form feeds in source code."""
    answer = await complete(service, prompt=text)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["text"] == text


async def test_half_a_character_is_none(service: Service) -> None:
    body = b'{"prompt": "a\\ud800"}'
    answer = await service.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_it_is_described(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()
    route = document["paths"]["/v1/completions"]["post"]
    assert route["responses"].keys() >= {"200", "400", "404", "429", "503", "504"}
    prompt = document["components"]["schemas"]["CompletionRequest"]["properties"]["prompt"]
    kinds = [(each["type"], each.get("items", {}).get("type")) for each in prompt["oneOf"]]
    assert kinds == [("string", None), ("array", "integer"), ("array", "string"), ("array", "array")]
    assert (
        "string or array of integer or array of string or array of array of integer"
        in (await service.http.get("/docs")).text
    )
