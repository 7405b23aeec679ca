"""Schemas without their annotations: what a keyword is, and what a name or a value."""

import json
from typing import Any

import pytest

from service.chat.tools.annotations import ANNOTATIONS, DEEPEST, without_annotations

BARE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "at the top": ({"title": "T", "description": "D", "type": "object"}, {"type": "object"}),
    "in properties": (
        {"properties": {"a": {"type": "string", "description": "A", "default": "x", "examples": ["y"]}}},
        {"properties": {"a": {"type": "string"}}},
    ),
    "names that are keywords": (
        {"properties": {"description": {"title": "T", "type": "string"}, "title": {}, "properties": {"default": 1}}},
        {"properties": {"description": {"type": "string"}, "title": {}, "properties": {}}},
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
    "a list of pairs": ({"items": [[{"title": "x"}]]}, {"items": [[{}]]}),
    "what is true or false": (
        {"additionalProperties": False, "items": True},
        {"additionalProperties": False, "items": True},
    ),
}


@pytest.mark.parametrize(("schema", "bare"), BARE.values(), ids=BARE)
def test_only_annotations_are_left_out(schema: dict[str, Any], bare: dict[str, Any]) -> None:
    before = json.dumps(schema)
    assert without_annotations(schema) == bare
    assert json.dumps(schema) == before, "the model is told of it with them"


@pytest.mark.parametrize("name", sorted(ANNOTATIONS))
def test_each_annotation_is_one(name: str) -> None:
    assert without_annotations({name: "x", "not": {name: {}}}) == {"not": {}}


@pytest.mark.parametrize("levels", [DEEPEST, DEEPEST + 1, 900])
def test_what_is_nested_too_deeply_is_not_looked_at(levels: int) -> None:
    deep = json.loads('{"items":' * levels + "{}" + "}" * levels)
    assert (without_annotations(deep) is None) == (levels > DEEPEST)
