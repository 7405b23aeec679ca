"""How much a schema may ask for. More is refused before the library sees it: some schemas of a few bytes would take it
minutes and gigabytes, and its stack ends.

Each bound is far above what schemas that people write have, and was set by what the worst schemas within them cost: see
tests/engine/grammars/test_bounds.py.
"""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

MAX_CHARACTERS = 16_384
MAX_NODES = 500
"""Objects and lists in all. References form chains through them, each link of which is a frame on the library's stack,
which holds a thousand."""
MAX_VALUES = 10_000
"""Of any kind: more are not looked at."""
MAX_BRANCHES = 40
"""Of anyOf and allOf in all, but for null: each is looked at for every token while an answer may be any of them."""
MAX_COUNTS = 32
"""Bounds of how many items or properties there are: in branches of each other, their products are looked at."""
MAX_TEXT = 512
"""Characters of a text that is forced: a name, a constant, one of an enum. And of a pattern."""
MAX_PATTERNS, MAX_PATTERNS_AT_ONCE = 16, 3
"""Patterns and formats; and where a text must fit several at once. Sixteen together took minutes and gigabytes."""
MAX_COUNT = 1000
"""Of items, and of properties."""
MAX_LENGTH = 20_000
"""Of strings."""

POWERS_OF_TEN = {10.0**power for power in range(-6, 4)}
"""What numbers may be multiples of: others make an automaton of as many states."""

REFUSED = ("patternProperties", "propertyNames")
"""Keywords whose cost grows with the square of what they list."""
COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
LENGTHS = ("minLength", "maxLength")
CHOICES = ("anyOf", "oneOf", "allOf")
PATTERNS = ("pattern", "format")
ANNOTATIONS = {"$ref", "$defs", "definitions", "$schema", "$id", "$comment"}
ANNOTATIONS |= {"title", "description", "default", "examples", "deprecated"}
"""What stands beside a reference without narrowing it."""


class _Entry(NamedTuple):
    """A value somewhere in a schema, and the key or place that it has there."""

    key: str
    value: Any


def excess(schema: dict[str, Any]) -> str:
    """What of a schema is more than is kept to, with the limit and the way out; "" if nothing is."""
    entries = list(islice(_entries(schema), MAX_VALUES))
    nodes = sum(isinstance(entry.value, dict | list) for entry in entries)
    if nodes > MAX_NODES or len(entries) == MAX_VALUES:
        return f"it has more than {MAX_NODES} objects and lists, or very many values; ask for less at once"
    characters = len(json.dumps(schema, ensure_ascii=False))
    if characters > MAX_CHARACTERS:
        return (
            f"it has {characters} characters, more than {MAX_CHARACTERS}; leave out its descriptions, or ask for less"
        )
    return next(filter(None, map(_excess_of_value, entries)), "") or _excess_of_many(entries)


def _entries(schema: dict[str, Any]) -> Iterator[_Entry]:
    """Every value in a schema, itself first, without recursion: it may be nested as deeply as a body can be."""
    waiting = [_Entry("", schema)]
    while waiting:
        entry = waiting.pop()
        yield entry
        if isinstance(entry.value, dict):
            waiting += [_Entry(key, value) for key, value in entry.value.items()]
        elif isinstance(entry.value, list):
            waiting += [_Entry(entry.key if entry.key == "enum" else "", value) for value in entry.value]


def _excess_of_value(entry: _Entry) -> str:
    key, value = entry
    if key in REFUSED and isinstance(value, dict):
        return f"{key} is not kept to; name the properties"
    if len(key) > MAX_TEXT:
        return f"a name has {len(key)} characters, more than {MAX_TEXT}"
    if key in ("const", "enum", "pattern") and isinstance(value, str) and len(value) > MAX_TEXT:
        return f"a text of {key} has {len(value)} characters, more than {MAX_TEXT}"
    if not isinstance(value, int | float):
        return ""
    if key == "multipleOf" and value not in POWERS_OF_TEN:
        return f"multipleOf is {value}; only powers of ten from 0.000001 to 1000 are kept to"
    most = MAX_COUNT if key in COUNTS else MAX_LENGTH if key in LENGTHS else value
    return f"{key} is {value}, more than {most}" if value > most else ""


def _excess_of_many(entries: list[_Entry]) -> str:
    branches = sum(_branches(entry) for entry in entries)
    if branches > MAX_BRANCHES:
        return f"its {', '.join(CHOICES)} have {branches} branches, more than {MAX_BRANCHES}; use an enum, or fewer"
    counts = sum(key in COUNTS and isinstance(value, int | float) for key, value in entries)
    if counts > MAX_COUNTS:
        return f"it has {counts} of {', '.join(COUNTS)}, more than {MAX_COUNTS}; leave some out"
    patterns = sum(key in PATTERNS and isinstance(value, str) for key, value in entries)
    most, at_once = (MAX_PATTERNS_AT_ONCE, " beside allOf") if any(map(_narrows, entries)) else (MAX_PATTERNS, "")
    return (
        f"it has {patterns} patterns and formats, more than {most}{at_once}; leave some out" if patterns > most else ""
    )


def _branches(entry: _Entry) -> int:
    if entry.key not in CHOICES or not isinstance(entry.value, list):
        return 0
    return sum(branch != {"type": "null"} for branch in entry.value)


def _narrows(entry: _Entry) -> bool:
    """Whether a text may have to fit several patterns here."""
    key, value = entry
    if isinstance(value, dict) and "$ref" in value:
        return not value.keys() <= ANNOTATIONS
    return key == "allOf" and isinstance(value, list) and len(value) > 1
