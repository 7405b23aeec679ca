"""What is said of a schema before anything is generated."""

import pytest

from service.engine.grammars.schema import WHITESPACE, json_grammar, problem_of

KEPT = {
    "any object": {"type": "object"},
    "anything": {},
    "nested": {"type": "array", "items": {"type": "object", "properties": {"a": {"enum": [1, "two", None]}}}},
    "references": {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
    "patterns and formats": {"properties": {"day": {"type": "string", "format": "date"}, "x": {"pattern": "^[a-z]+$"}}},
    "what describes": {
        "title": "T",
        "description": "D",
        "type": "string",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    },
}

REFUSED = {
    "an unknown type": ({"type": "strin"}, "strin"),
    "a keyword that can't be kept to": ({"not": {"type": "string"}}, "not"),
    "a format nobody knows": ({"type": "string", "format": "nonsense"}, "nonsense"),
    "bounds that cross": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum (5) is greater than maximum (3)"),
    "another document": ({"$ref": "https://example.com/x.json"}, "example.com"),
    "a pattern that looks ahead": ({"type": "string", "pattern": "(?=x)y"}, "look-ahead"),
    "a pattern that is none": ({"type": "string", "pattern": "["}, "unclosed character class"),
}


@pytest.mark.parametrize("schema", KEPT.values(), ids=KEPT)
def test_ordinary_schemas_can_be_kept_to(schema: dict[str, object]) -> None:
    assert problem_of(json_grammar(schema)) == ""


@pytest.mark.parametrize(("schema", "word"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_kept_to_is_named_in_one_line(schema: dict[str, object], word: str) -> None:
    problem = problem_of(json_grammar(schema))
    assert word in problem
    assert "\n" not in problem


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}}
    assert "recursion limit" in problem_of(json_grammar(schema))


def test_what_a_client_asks_of_the_library_itself_does_not_reach_it() -> None:
    """`lenient` would have it ignore what it can't keep to."""
    asked = {"not": {}, "x-guidance": {"lenient": True}}
    assert "not" in problem_of(json_grammar(asked))
    assert WHITESPACE in json_grammar({"x-guidance": {"whitespace_pattern": ".*"}}).replace("\\\\", "\\")
