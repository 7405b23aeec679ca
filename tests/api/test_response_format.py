"""`response_format`: what is refused and how, on both routes. Answers that keep to it need a model: tests/system."""

import json
from typing import Any

import httpx
import pytest

from service.engine.base import GenerationRequest
from service.engine.grammars.bounds import MAX_CHARACTERS
from tests.api.conftest import Service

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


OPEN = {name: value for name, value in SCHEMA.items() if name != "additionalProperties"}
"""As pydantic and zod write it: an answer has no more than is listed all the same."""
DEEP: dict[str, Any] = json.loads('{"items":' * 70 + "{}" + "}" * 70)
"""Deeper than is looked at for what could be closed."""


def of_schema(schema: object, **more: object) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | more}


async def ask(service: Service, route: str, **body: Any) -> httpx.Response:
    asked = {"prompt": "hi"} if route == "/v1/chat" else {"messages": [{"role": "user", "content": "hi"}]}
    return await service.http.post(route, json=asked | body)


def complaint(answer: httpx.Response) -> tuple[str, str]:
    """Field and words of a refusal, in whichever form."""
    body = answer.json()
    error = body.get("error", body)
    return error.get("param", error.get("field")), error.get("message", error.get("detail"))


ROUTES = pytest.mark.parametrize("route", ["/v1/chat", "/v1/chat/completions"])

REFUSED: dict[str, tuple[object, str, str]] = {
    "no object": ("json", "response_format", "dictionary"),
    "no type": ({}, "response_format.type", "missing"),
    "an unknown type": ({"type": "xml"}, "response_format.type", "json_schema"),
    "an unknown field": ({"type": "text", "strict": True}, "response_format.strict", "not a field"),
    "no schema": ({"type": "json_schema"}, "response_format", "json_schema"),
    "a schema of an object": (of_schema({}) | {"type": "json_object"}, "response_format", "json_schema"),
    "a schema that is none": (of_schema([]), "response_format.json_schema.schema", "dictionary"),
    "an unknown field beside it": (of_schema({}, extra=1), "response_format.json_schema.extra", "not a field"),
    "an unknown type in it": (of_schema({"type": "strin"}), "response_format.json_schema.schema", "strin"),
    "a keyword that can't be kept to": (of_schema({"not": {}}), "response_format.json_schema.schema", '"not"'),
    "too many fields": (
        of_schema({}, description="d", strict=True, e1=1, e2=2, e3=3),
        "response_format.json_schema.e1",
        "not a field",
    ),
    "a schema that would take minutes": (
        of_schema({"type": "integer", "multipleOf": 99_999_989}),
        "response_format.json_schema.schema",
        "multipleOf is 99999989",
    ),
    "a schema that would take the stack": (
        of_schema({"$defs": {f"a{i}": {"items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(1300)}}),
        "response_format.json_schema.schema",
        "objects and lists",
    ),
    "a large schema": (
        of_schema({"enum": ["x" * 100] * 300}),
        "response_format.json_schema.schema",
        str(MAX_CHARACTERS),
    ),
}


@ROUTES
@pytest.mark.parametrize(("given", "field", "word"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_kept_to_is_refused_by_name(
    service: Service, route: str, given: object, field: str, word: str
) -> None:
    answer = await ask(service, route, response_format=given)
    assert answer.status_code == 400
    named, words = complaint(answer)
    assert named == field
    assert word in words


@ROUTES
@pytest.mark.parametrize("levels", [130, 400, 900, 930, 940, 944, 948, 960, 5000])
async def test_a_schema_nested_without_end_is_refused_and_the_service_goes_on(
    service: Service, route: str, levels: int
) -> None:
    deep = '{"items":' * levels + "{}" + "}" * levels
    body = {"prompt": "hi"} if route == "/v1/chat" else {"messages": [{"role": "user", "content": "hi"}]}
    text = json.dumps(body | {"response_format": of_schema("DEEP")}).replace('"DEEP"', deep)
    answer = await service.http.post(route, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert complaint(answer)[0] in ("response_format.json_schema.schema", "body")
    assert (await ask(service, route)).status_code == 200


@ROUTES
async def test_thinking_and_json_exclude_each_other(service: Service, route: str) -> None:
    answer = await ask(service, route, response_format={"type": "json_object"}, thinking=True)
    assert answer.status_code == 400
    assert complaint(answer)[0] == "response_format"
    assert "thinking" in complaint(answer)[1]
    assert (await ask(service, route, response_format={"type": "text"}, thinking=True)).status_code == 200


@pytest.mark.parametrize(("field", "value"), [("ignore_eos", True), ("stop_token_ids", [5])])
async def test_json_says_where_it_ends_and_so_excludes_another_end(service: Service, field: str, value: object) -> None:
    answer = await ask(service, "/v1/chat/completions", response_format={"type": "json_object"}, **{field: value})
    assert answer.status_code == 400
    assert complaint(answer)[0] == field
    assert "response_format" in complaint(answer)[1]


@ROUTES
@pytest.mark.parametrize("given", [None, {"type": "text"}, {"type": "text", "json_schema": None}])
async def test_text_is_what_it_always_was(service: Service, route: str, given: object) -> None:
    answer = await ask(service, route, response_format=given)
    assert answer.status_code == 200
    assert answer.json() | {"time": 0, "id": 0, "created": 0} == (await ask(service, route)).json() | {
        "time": 0,
        "id": 0,
        "created": 0,
    }


@ROUTES
@pytest.mark.parametrize(
    ("given", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        (of_schema(SCHEMA), SCHEMA),
        (of_schema(SCHEMA, strict=True, description="An answer."), SCHEMA),
        (of_schema(SCHEMA, strict=False), SCHEMA),
        ({"type": "json_schema", "json_schema": {"name": "any"}}, {"type": "object"}),
        (of_schema(None), {"type": "object"}),
        (of_schema({}), {}),
        (of_schema(SCHEMA | {"title": "T", "propertyNames": {"type": "string"}}), SCHEMA),
        (of_schema(OPEN), SCHEMA),
        (of_schema(OPEN | {"additionalProperties": True}), OPEN | {"additionalProperties": True}),
        (of_schema({"type": "string", "format": "uuid4"}), {"type": "string"}),
        (of_schema({"format": "uuid4"}), {}),
        (of_schema({"type": "object", "properties": {}}), {"type": "object"}),
        (of_schema(DEEP), DEEP),
    ],
)
async def test_the_engine_is_told_the_schema(
    service: Service, route: str, given: object, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And of the fake one, which only echoes, the client is."""
    asked: list[GenerationRequest] = []
    submit = service.engine.submit
    monkeypatch.setattr(service.engine, "submit", lambda request: asked.append(request) or submit(request))
    answer = await ask(service, route, response_format=given)
    (request,) = asked
    (grammar,) = json.loads(request.grammar)["grammars"]
    guided = grammar["json_schema"]
    assert {name: value for name, value in guided.items() if name != "x-guidance"} == schema
    assert answer.status_code == 400
    assert "echo" in complaint(answer)[1]


@ROUTES
async def test_a_refused_schema_costs_the_engine_nothing(
    service: Service, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.engine, "submit", None)
    answer = await ask(service, route, response_format=of_schema({"type": "strin"}))
    assert answer.status_code == 400


async def test_the_description_says_what_there_is(service: Service) -> None:
    schemas = (await service.http.get("/openapi.json")).json()["components"]["schemas"]
    for body in ("ChatRequest", "ChatCompletionRequest"):
        assert "response_format" in schemas[body]["properties"]
    assert set(schemas["NamedSchema"]["properties"]) == {"name", "description", "schema", "strict"}
