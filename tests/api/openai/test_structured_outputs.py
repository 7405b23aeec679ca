"""`structured_outputs`: what is refused and how, and what the engine is told, on both kinds of completions."""

import json
from typing import Any

import httpx
import pytest

from service.api.openai.unserved import OF_STRUCTURED_OUTPUTS
from service.engine.base import GenerationRequest
from service.engine.grammars.bounds import MAX_CHARACTERS, MAX_TEXT
from service.engine.grammars.schema import json_grammar
from service.engine.grammars.texts import one_of, pattern_grammar
from tests.api.conftest import Service
from tests.api.openai.conftest import Scripted

TOOL = {"type": "function", "function": {"name": "now"}}
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
}
ROUTES = pytest.mark.parametrize("route", ASKED)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


async def ask(service: Service, route: str, **body: Any) -> httpx.Response:
    text = json.dumps(ASKED[route] | body)
    return await service.http.post(route, content=text, headers={"Content-Type": "application/json"})


REFUSED: dict[str, tuple[object, str, str]] = {
    "no object": ("json", "", "dictionary"),
    "nothing": ({}, "", "one of choice, regex, json, json_object"),
    "two": ({"regex": "a", "choice": ["a"]}, "", "one of"),
    "no JSON asked for": ({"json_object": False}, "", "one of"),
    "another field": ({"regex": "a", "xml": 1}, ".xml", "not a field"),
    "another language": ({"grammar": "root ::= 'a'"}, ".grammar", "not served"),
    "whitespace of one's own": ({"json": {}, "whitespace_pattern": " *"}, ".whitespace_pattern", "not served"),
    "no choice": ({"choice": []}, ".choice", "at least 1"),
    "nothing to choose": ({"choice": ["a", ""]}, ".choice.1", "at least 1"),
    "a number to choose": ({"choice": ["a", 1]}, ".choice.1", "string"),
    "a control character to choose": ({"choice": ["a\x07"]}, ".choice.0", "U+0007"),
    "half a pair to choose": ({"choice": ["\ud800"]}, ".choice.0", ""),
    "a long text to choose": ({"choice": ["x" * (MAX_TEXT + 1)]}, ".choice.0", str(MAX_TEXT)),
    "very many": ({"choice": [f"{n:05}" for n in range(MAX_CHARACTERS // 5 + 1)]}, ".choice", str(MAX_CHARACTERS)),
    "half a pair to match": ({"regex": "\ud800"}, ".regex", ""),
    "no pattern": ({"regex": ""}, ".regex", "at least 1"),
    "half a pattern": ({"regex": "("}, ".regex", "unclosed group"),
    "a pattern that looks ahead": ({"regex": "(?=x)y"}, ".regex", "look-ahead"),
    "a long pattern": ({"regex": "x" * (MAX_TEXT + 1)}, ".regex", str(MAX_TEXT)),
    "a large pattern": ({"regex": r"(a{1000}){1000}"}, ".regex", "more than 20000 characters"),
    "a schema that is none": ({"json": []}, ".json", "dictionary"),
    "a text that is none": ({"json": "{"}, ".json", "not JSON"),
    "a text without an end": ({"json": "[" * 100_000}, ".json", "nested"),
    "a schema that can't be kept to": ({"json": {"not": {}}}, ".json", '"not"'),
    "a large schema": ({"json": {"enum": ["x" * 100] * 300}}, ".json", str(MAX_CHARACTERS)),
}


@ROUTES
@pytest.mark.parametrize(("given", "below", "word"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_kept_to_is_refused_by_name(
    service: Service, route: str, given: object, below: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.engine, "submit", None)
    answer = await ask(service, route, structured_outputs=given)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == f"structured_outputs{below}"
    assert word in answer.json()["error"]["message"]


TOLD: dict[str, tuple[dict[str, Any], str]] = {
    "a choice": ({"choice": ["yes", "no/never"]}, pattern_grammar(one_of(["yes", "no/never"]))),
    "a pattern": ({"regex": r"\d+/\d+"}, pattern_grammar(r"\d+/\d+")),
    "a schema": ({"json": SCHEMA}, json_grammar(SCHEMA)),
    "the JSON of one": ({"json": json.dumps(SCHEMA)}, json_grammar(SCHEMA)),
    "one that pydantic wrote": ({"json": SCHEMA | {"title": "T"}}, json_grammar(SCHEMA)),
    "an object": ({"json_object": True}, json_grammar({"type": "object"})),
    "nulls": ({"json": None, "regex": None, "choice": ["a"], "whitespace_pattern": None}, pattern_grammar("a")),
    "defaults": (
        {"choice": ["a"]} | {name: values[0] for name, values in OF_STRUCTURED_OUTPUTS.items() if values},
        pattern_grammar("a"),
    ),
}


@ROUTES
@pytest.mark.parametrize(("given", "grammar"), TOLD.values(), ids=TOLD)
async def test_the_engine_is_told_what_the_answer_is(
    service: Service, route: str, given: object, grammar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GenerationRequest] = []
    submit = service.engine.submit
    monkeypatch.setattr(service.engine, "submit", lambda request: asked.append(request) or submit(request))
    answer = await ask(service, route, structured_outputs=given)
    assert [request.grammar for request in asked] == [grammar]
    assert answer.status_code == 400  # the fake engine only echoes, and says so
    assert "echo" in answer.json()["error"]["message"]


@ROUTES
async def test_two_forms_exclude_each_other(service: Service, route: str) -> None:
    answer = await ask(service, route, structured_outputs={"regex": "a"}, response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"
    assert "response_format" in answer.json()["error"]["message"]


@ROUTES
@pytest.mark.parametrize("other", [{"ignore_eos": True}, {"stop_token_ids": [5]}])
async def test_another_end_is_refused_beside_it(service: Service, route: str, other: dict[str, Any]) -> None:
    answer = await ask(service, route, structured_outputs={"regex": "a"}, **other)
    assert answer.status_code == 400
    assert "structured_outputs" in answer.json()["error"]["message"]


async def test_thinking_has_no_room_in_it(service: Service) -> None:
    answer = await ask(service, "/v1/chat/completions", structured_outputs={"regex": "a"}, thinking=True)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"


async def test_a_prompt_that_is_scored_goes_without(service: Service) -> None:
    answer = await ask(service, "/v1/completions", structured_outputs={"regex": "a"}, echo=True, logprobs=1)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs"


async def test_no_call_of_a_tool_is_such_a_text(calling: Service, scripted: Scripted) -> None:
    """JSON is not refused: an answer may be a call, or that."""
    answer = await ask(calling, "/v1/chat/completions", structured_outputs={"choice": ["a"]}, tools=[TOOL])
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "structured_outputs.choice"
    assert not scripted.asked
    for allowed in ({"tool_choice": "none"}, {"structured_outputs": {"json_object": True}}):
        body = {"structured_outputs": {"choice": ["a"]}, "tools": [TOOL]} | allowed
        assert (await ask(calling, "/v1/chat/completions", **body)).status_code == 200


async def test_a_space_that_an_answer_must_begin_with_is_told(calling: Service, scripted: Scripted) -> None:
    """The token is the same; a text's first space is the tokenizer's own otherwise."""
    scripted.text = "yes"
    for form, text in ({"choice": [" yes"]}, " yes"), (None, "yes"):
        answer = await ask(calling, "/v1/chat/completions", structured_outputs=form)
        assert answer.json()["choices"][0]["message"]["content"] == text


async def test_the_description_says_what_there_is(service: Service) -> None:
    schemas = (await service.http.get("/openapi.json")).json()["components"]["schemas"]
    assert set(schemas["StructuredOutputs"]["properties"]) == {"choice", "regex", "json", "json_object"}
    assert "structured_outputs" not in schemas["ChatRequest"]["properties"]
