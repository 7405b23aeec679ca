"""What schemas hold answers and calls to: without what says nothing, and without properties that are not listed."""

import json
from typing import Any

import pytest

from service.engine.grammars.bounds import FINER, FORMATS, UNKEPT_FORMATS
from service.engine.grammars.closing import DEEPEST, UNKEPT, held_to, without_unkept
from service.engine.grammars.schema import json_grammar, problem_of

CLOSED = {"additionalProperties": False}

BARE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "at the top": ({"title": "T", "description": "D", "type": "object"}, {"type": "object"}),
    "in properties": (
        {"properties": {"a": {"type": "string", "description": "A", "default": "x", "examples": ["y"]}}},
        {"properties": {"a": {"type": "string"}}} | CLOSED,
    ),
    "names that are keywords": (
        {"properties": {"description": {"title": "T", "type": "string"}, "title": {}, "properties": {"default": 1}}},
        {"properties": {"description": {"type": "string"}, "title": {}, "properties": {}}} | CLOSED,
    ),
    "in lists": (
        {"anyOf": [{"title": "A", "type": "null"}, {"items": {"description": "B"}}]},
        {"anyOf": [{"type": "null"}, {"items": {}}]},
    ),
    "values": (
        {"enum": [{"title": "kept"}, "x"], "const": {"description": "kept"}, "required": ["title"]},
        {"enum": [{"title": "kept"}, "x"], "const": {"description": "kept"}, "required": ["title"]},
    ),
    "definitions": (
        {"$defs": {"title": {"title": "T", "$ref": "#/$defs/b"}}, "$ref": "#/$defs/title"},
        {"$defs": {"title": {"$ref": "#/$defs/b"}}, "$ref": "#/$defs/title"},
    ),
    "schemas by pattern": (
        {"patternProperties": {"title": {"title": "x"}}, "dependentSchemas": {"title": {"title": "x"}}},
        {"patternProperties": {"title": {}}, "dependentSchemas": {"title": {}}},
    ),
    "older definitions": ({"definitions": {"title": {"title": "x"}}}, {"definitions": {"title": {}}}),
    "a list of pairs": ({"items": [[{"title": "x"}]]}, {"items": [[{}]]}),
    "what is true or false": (
        {"additionalProperties": False, "items": True},
        {"additionalProperties": False, "items": True},
    ),
}


@pytest.mark.parametrize(("schema", "bare"), BARE.values(), ids=BARE)
def test_only_annotations_are_left_out(schema: dict[str, Any], bare: dict[str, Any]) -> None:
    before = json.dumps(schema)
    assert held_to(schema) == bare
    assert json.dumps(schema) == before, "the model is told of it with them"


NOTES = ["$comment", "$schema", "default", "deprecated", "description", "example", "examples", "readOnly", "title"]


@pytest.mark.parametrize("name", [*NOTES, "writeOnly"])
def test_each_annotation_is_one(name: str) -> None:
    assert held_to({name: "x", "not": {name: {}}}) == {"not": {}}


ZOD_STRINGS = ["base64", "cuid2", "e164", "emoji", "jwt", "lowercase", "nanoid", "starts_with", "ulid"]
PYDANTIC_STRINGS = ["binary", "file-path", "ipvanyaddress", "password", "path", "uuid4"]


@pytest.mark.parametrize("name", [*ZOD_STRINGS, *PYDANTIC_STRINGS])
def test_a_format_that_is_a_librarys_own_says_nothing(name: str) -> None:
    assert held_to({"type": "string", "format": name, "pattern": "^a"}) == {"type": "string", "pattern": "^a"}
    assert held_to({"properties": {"format": {"format": name}}}) == {"properties": {"format": {}}} | CLOSED


def test_every_format_that_is_kept_to_is_known() -> None:
    for name in FORMATS:
        assert held_to({"format": name}) == {"format": name} | ({"pattern": FINER[name]} if name in FINER else {})
        assert problem_of(json_grammar({"type": "string", "format": name})) == ""


@pytest.mark.parametrize("name", sorted(UNKEPT_FORMATS))
def test_a_format_of_json_schemas_that_is_not_kept_to_is_refused(name: str) -> None:
    wanted = held_to({"type": "string", "format": name})
    assert wanted is not None
    assert f"Unknown format: {name}" in problem_of(json_grammar(wanted))
    assert without_unkept(wanted) == {"type": "string"}


@pytest.mark.parametrize("beside", [{"pattern": "^1"}, {"const": "20:26:60Z"}, {"enum": []}, {"minLength": 30}])
def test_what_else_is_said_of_a_time_is_not_contradicted(beside: dict[str, Any]) -> None:
    assert held_to({"format": "time"} | beside) == {"format": "time"} | beside


@pytest.mark.parametrize("value", [True, {}, {"type": "string"}])
def test_what_every_name_fits_says_nothing(value: object) -> None:
    """zod writes it for each `z.record`."""
    assert held_to({"propertyNames": value, "additionalProperties": {}}) == {"additionalProperties": {}}
    assert held_to({"propertyNames": {"pattern": "x"}}) == {"propertyNames": {"pattern": "x"}}


@pytest.mark.parametrize("name", sorted(UNKEPT))
def test_what_cannot_be_kept_to_is_left_out_where_it_is_a_keyword(name: str) -> None:
    assert name in problem_of(json_grammar({name: {}})), "else it could be kept to"
    of_property = {"properties": {name: {name: {}, "type": "string"}}, "enum": [{name: 1}]}
    assert without_unkept({name: {}, "items": of_property, "anyOf": [{name: {}}]}) == {
        "items": {"properties": {name: {"type": "string"}}, "enum": [{name: 1}]},
        "anyOf": [{}],
    }


CONDITIONAL: list[dict[str, Any]] = [
    {"if": {"properties": {"a": {"const": 1}}}, "then": {"properties": {"b": {}}, "required": ["b"]}},
    {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {"required": ["b"]}}},
    {"dependencies": {"a": ["b"]}},
]


@pytest.mark.parametrize("condition", CONDITIONAL)
def test_what_a_condition_lists_can_still_be_said(condition: dict[str, Any]) -> None:
    """Though it is not kept to."""
    wanted = held_to(listing() | condition)
    assert wanted is not None
    assert without_unkept(wanted) == listing()


@pytest.mark.parametrize("levels", [DEEPEST, DEEPEST + 1, 900])
def test_what_is_nested_too_deeply_is_not_looked_at(levels: int) -> None:
    deep = json.loads('{"items":' * levels + "{}" + "}" * levels)
    assert (held_to(deep) is None) == (levels > DEEPEST)
    lists = json.loads('{"items":' + "[" * levels + "]" * levels + "}")
    assert (held_to(lists) is None) == (levels > DEEPEST)


def listing(**keywords: Any) -> dict[str, Any]:
    return {"properties": {"a": {}}} | keywords


DEFINED = {"$defs": {"A": listing()}}
CLOSED_DEFINED = {"$defs": {"A": listing() | CLOSED}}
REFERRED = DEFINED | {"$ref": "#/$defs/A"}

CLOSING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "what is listed": (listing(), listing() | CLOSED),
    "listed elsewhere than required": (REFERRED | {"required": ["b"]}, REFERRED | {"required": ["b"]}),
    "required beside a choice": (
        {"anyOf": [listing()], "required": ["b"]},
        {"anyOf": [listing()], "required": ["b"]},
    ),
    "open beside a choice": (
        {"anyOf": [listing()], "additionalProperties": True},
        {"anyOf": [listing()], "additionalProperties": True},
    ),
    "said to have none unevaluated": (
        listing(unevaluatedProperties=False),
        listing(unevaluatedProperties=False) | CLOSED,
    ),
    "where no schemas are": (
        {"components": {"schemas": {"example": listing()}}},
        {"components": {"schemas": {"example": listing()}}},
    ),
    "what is required": (listing(required=["a"]), listing(required=["a"]) | CLOSED),
    "required and not listed": (listing(required=["a", "b"]), listing(required=["a", "b"])),
    "required, and no list": (listing(required="b"), listing(required="b") | CLOSED),
    "no list at all": ({"properties": True, "required": ["a"]}, {"properties": True, "required": ["a"]}),
    "nothing, listed": ({"properties": {}}, {"properties": {}} | CLOSED),
    "not listed": ({"type": "object"}, {"type": "object"}),
    "said to be open": (listing(additionalProperties=True), listing(additionalProperties=True)),
    "of another schema": (listing(additionalProperties=listing()), listing(additionalProperties=listing() | CLOSED)),
    "by patterns": (listing(patternProperties={}), listing(patternProperties={})),
    "in a list": ({"items": listing()}, {"items": listing() | CLOSED}),
    "in a choice": ({"anyOf": [listing()]}, {"anyOf": [listing() | CLOSED]}),
    "what is unevaluated": (listing(unevaluatedProperties=True), listing(unevaluatedProperties=True)),
    "beside a choice of properties": (listing(anyOf=[listing()]), listing(anyOf=[listing()])),
    "beside another choice": (listing(oneOf=[listing()]), listing(oneOf=[listing()])),
    "beside a reference": (REFERRED | listing(), REFERRED | listing()),
    "a choice of two": ({"anyOf": [listing()], "oneOf": [listing()]}, {"anyOf": [listing()], "oneOf": [listing()]}),
    "by what is there": (listing(dependentSchemas={"a": listing()}), listing(dependentSchemas={"a": listing()})),
    "joined of one": (
        {"allOf": [{"$ref": "#/$defs/A"}]} | DEFINED,
        {"allOf": [{"$ref": "#/$defs/A"}]} | CLOSED_DEFINED,
    ),
    "names that join": (
        {"properties": {"allOf": {}, "anyOf": {}}},
        {"properties": {"allOf": {}, "anyOf": {}}} | CLOSED,
    ),
    "a value that joins": (listing(enum=["allOf"]), listing(enum=["allOf"]) | CLOSED),
    "a name": ({"properties": {"properties": listing()}}, {"properties": {"properties": listing() | CLOSED}} | CLOSED),
    "a value": ({"const": listing()}, {"const": listing()}),
    "joined": ({"allOf": [listing(), {"properties": {"b": {}}}]}, {"allOf": [listing(), {"properties": {"b": {}}}]}),
    "joined elsewhere": (
        {"$defs": {"A": listing()}, "items": {"allOf": [{"$ref": "#/$defs/A"}, {"required": ["b"]}]}},
        {"$defs": {"A": listing()}, "items": {"allOf": [{"$ref": "#/$defs/A"}, {"required": ["b"]}]}},
    ),
}


@pytest.mark.parametrize(("schema", "closed"), CLOSING.values(), ids=CLOSING)
def test_objects_have_no_more_than_is_listed_unless_something_says_so(
    schema: dict[str, Any], closed: dict[str, Any]
) -> None:
    assert held_to(schema) == closed
