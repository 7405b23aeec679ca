"""GET /docs and /openapi.json: the API's description, for readers without any network but this service."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment

TEMPLATE = Path(__file__).with_name("docs.html")
HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} character(s)",
    "maxLength": "at most {} characters",
    "minItems": "at least {} item(s)",
    "maxItems": "at most {} items",
}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One field of a request body, in words."""

    name: str
    kind: str
    default: str
    limits: str
    description: str


@dataclass(frozen=True)
class Answer:
    """One status of a route, with the media types it comes in."""

    status: str
    media_types: str
    description: str
    examples: list[str]


@dataclass(frozen=True)
class Operation:
    """One route."""

    method: str
    path: str
    summary: str
    asks_for_key: bool
    fields: list[Field]
    answers: list[Answer]


def router(app: FastAPI) -> APIRouter:
    """The routes; neither is in the document itself, which is made when it is first asked for: all are known then."""
    routes = APIRouter(include_in_schema=False)

    @cache
    def page() -> str:
        document = app.openapi()
        template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text())
        return template.render(info=document["info"], operations=list(operations(document)))

    @routes.get("/openapi.json")
    async def described() -> JSONResponse:
        return JSONResponse(app.openapi())

    @routes.get("/docs")
    async def read() -> HTMLResponse:
        return HTMLResponse(page(), headers=HEADERS)

    return routes


def operations(document: Schema) -> Iterator[Operation]:
    """The routes of an OpenAPI document."""
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield Operation(
                method=method.upper(),
                path=path,
                summary=route["summary"],
                asks_for_key=bool(route.get("security")),
                fields=list(_fields(document, route)),
                answers=[_answer(status, answer) for status, answer in sorted(route["responses"].items())],
            )


def _fields(document: Schema, route: Schema) -> Iterator[Field]:
    if "requestBody" not in route:
        return
    body = _resolved(document, route["requestBody"]["content"]["application/json"]["schema"])
    for name, schema in sorted(body["properties"].items(), key=lambda each: each[0] not in body["required"]):
        required = name in body["required"]
        meant = next(iter(_alternatives(document, schema)))
        yield Field(
            name=name,
            kind=_kind(document, schema),
            default="required" if required else _default(schema.get("default")),
            limits=", ".join(words.format(_number(meant[key])) for key, words in LIMITS.items() if key in meant),
            description=schema.get("description", ""),
        )


def _answer(status: str, answer: Schema) -> Answer:
    content = answer.get("content", {})
    examples = [each["example"] for each in content.values() if "example" in each]
    return Answer(status, ", ".join(content), answer["description"], examples)


def _kind(document: Schema, schema: Schema) -> str:
    return " or ".join(_simple_kind(document, each) for each in _alternatives(document, schema))


def _simple_kind(document: Schema, schema: Schema) -> str:
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum") or [schema["const"]])
    if schema["type"] == "array":
        return f"array of {_kind(document, schema['items'])}"
    if "properties" in schema:
        of = (f"{name}: {_kind(document, each)}" for name, each in schema["properties"].items())
        return f"{{{', '.join(of)}}}"
    return str(schema["type"])


def _alternatives(document: Schema, schema: Schema) -> list[Schema]:
    """What a value may be, but for null, which is a field unset."""
    resolved = _resolved(document, schema)
    each = (_resolved(document, one) for one in resolved.get("anyOf") or resolved.get("oneOf") or [resolved])
    return [one for one in each if one.get("type") != "null"]


def _default(value: object) -> str:
    if isinstance(value, dict) or value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _resolved(document: Schema, schema: Schema) -> Schema:
    """The schema itself, or the one it refers to."""
    if "$ref" not in schema:
        return schema
    found: Schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found
