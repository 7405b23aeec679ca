"""The API's description: complete, true, and readable where there is no network but the service."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from service.api.schema import ChatRequest, Problem
from tests.api.conftest import Service, Start
from tests.api.test_failures import samples

ERRORS = {"400", "408", "413", "415", "429", "503", "504"}


@pytest.fixture
async def document(service: Service) -> dict[str, Any]:
    described: dict[str, Any] = (await service.http.get("/openapi.json")).json()
    return described


def references(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            yield from [value] if key == "$ref" else references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


async def test_the_page_loads_nothing_from_anywhere(service: Service) -> None:
    page = await service.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import|https://", page.text)


async def test_the_page_shows_every_route_field_and_status(service: Service, document: dict[str, Any]) -> None:
    page = (await service.http.get("/docs")).text
    for path, methods in document["paths"].items():
        assert all(f"{method.upper()} {path}" in page for method in methods)
    assert all(f"<code>{name}</code>" in page for name in ChatRequest.model_fields)
    assert all(f"<td>{status}</td>" in page for status in ERRORS)
    assert "at most 400,000 characters" in page
    assert "data: [DONE]" in page


async def test_what_a_chat_is_answered_is_described(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/chat"]["post"]["responses"]
    assert answers.keys() == {"200"} | ERRORS
    assert answers["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert {status for status in ERRORS if "application/problem+json" in answers[status]["content"]} == ERRORS
    assert "context_too_long" in answers["400"]["description"]


async def test_openais_clients_are_told_the_codes_they_get(document: dict[str, Any]) -> None:
    answers = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert answers.keys() == {"200", "404"} | ERRORS
    described = " ".join(answer["description"] for answer in answers.values())
    codes = {"model_not_found", "context_length_exceeded", "rate_limit_exceeded", "not_ready", "deadline_exceeded"}
    assert {code for code in codes if f"{code}: " not in described} == set()
    assert "queue_full" not in described


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert found
    assert found <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


@pytest.mark.parametrize("body", [{"prompt": ""}, {"prompt": "hi", "tools": []}])
async def test_a_problem_is_as_it_is_described(service: Service, body: dict[str, object]) -> None:
    problem = (await service.http.post("/v1/chat", json=body)).json()
    jsonschema.validate(problem, Problem.model_json_schema() | {"additionalProperties": False})
    assert problem["field"]


async def test_a_key_is_asked_for_in_the_document_when_it_is_by_the_service(start: Start, tmp_path: Path) -> None:
    open_one = (await (await start()).http.get("/openapi.json")).json()
    assert "securitySchemes" not in open_one["components"]
    (tmp_path / "keys").write_text("alpha\n")
    guarded = await start(api_keys_file=tmp_path / "keys")
    document = (await guarded.http.get("/openapi.json")).json()
    (scheme,) = document["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    locked = {path for path, methods in document["paths"].items() for route in methods.values() if "security" in route}
    openai = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/{name}"}
    assert locked == {"/v1/chat", *openai}
    assert "401" in document["paths"]["/v1/chat"]["post"]["responses"]
    assert "Bearer KEY" in (await guarded.http.get("/docs")).text


async def test_both_are_routes_of_their_own_in_the_metrics(service: Service) -> None:
    for path in ("/docs", "/openapi.json"):
        assert (await service.http.get(path)).status_code == 200
        assert samples(service)["internlm_http_requests_total", f"{path} 200"] == 1


def models(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """All of the API's own, as far as it is imported."""
    found = [kind] if kind.__module__.startswith("service.api") else []
    return found + [model for each in kind.__subclasses__() for model in models(each)]


def test_no_two_models_go_by_one_name() -> None:
    """In the description one would stand for the other."""
    names = [model.__name__ for model in {*models(BaseModel)}]
    assert sorted(names) == sorted(set(names))
    assert len(names) > 30
