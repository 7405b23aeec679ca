"""The worst schemas that are let through are cheap, and what would not be is refused with its limit."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.engine.grammars.bounds import FINER, MAX_CHARACTERS, MAX_CHOICES, MAX_LEVELS, MAX_NODES, MAX_VALUES, excess
from service.engine.grammars.compiler import GrammarCompiler
from service.engine.grammars.schema import json_grammar, problem_of

V = {"$ref": "#/$defs/v"}


def any_of(branches: list[Any]) -> dict[str, Any]:
    """Which may each hold any of all again."""
    return {"$defs": {"v": {"anyOf": branches}}, "$ref": "#/$defs/v"}


def chain(links: int, link: Any) -> dict[str, Any]:
    """References that each lead to the next."""
    defs = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(links)}
    return {"$defs": {**defs, f"a{links}": {}}, "$ref": "#/$defs/a0"}


TYPES = ("integer", "string", "boolean")
FORMATS = ("date", "time", "email", "uuid", "ipv4", "ipv6", "date-time", "hostname")


def tower(joined: Any, holding: Any = lambda pattern: pattern) -> dict[str, Any]:
    """Patterns that one text must fit, each a level further in."""
    schema: dict[str, Any] = {}
    for level in range(16):
        schema = holding({"pattern": f"(a|b)*a(a|b){{{level * 7 + 13}}}"}) | joined(schema)
    return schema


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


ORDINARY: dict[str, dict[str, Any]] = {
    "a form": {
        "type": "object",
        "properties": {f"field_{i}": {"anyOf": [{"type": "string"}, {"type": "null"}]} for i in range(100)},
        "required": ["field_1"],
        "additionalProperties": False,
    },
    "formats and patterns": {
        "type": "object",
        "properties": {
            "born": {"type": "string", "format": "date"},
            "mail": {"type": "string", "format": "email"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"},
            "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
            "minutes": {"type": "integer", "multipleOf": 15},
            "share": {"type": "number", "multipleOf": 0.25},
            "dates": {
                "type": "object",
                "properties": {f"d{i}": {"type": "string", "format": "date"} for i in range(40)},
            },
        },
    },
    "a tree": any_of([{"type": "object", "properties": {"left": V, "right": V, "is": {"type": "string"}}}]),
    "long answers": {"type": "array", "items": {"type": "string", "maxLength": 4000}, "maxItems": 100},
    "many choices": {"enum": [f"choice {i}" for i in range(700)]},
    "a recursive class of pydantic's": {
        "$defs": {
            "Node": {
                "properties": {f"p{i}": {"type": "string", "format": "date"} for i in range(9)}
                | {"next": {"anyOf": [{"$ref": "#/$defs/Node", "description": "the next"}, {"type": "null"}]}},
                "required": ["p1", "next"],
                "title": "Node",
                "type": "object",
            }
        },
        "$ref": "#/$defs/Node",
    },
    "choices beside annotations": {
        "properties": {
            f"p{i}": {"anyOf": [{"format": f}, {"type": "integer"}], "title": "T"} for i, f in enumerate(FORMATS)
        }
    },
    "choices beside their type": {
        "type": "object",
        "anyOf": [{"properties": {f"d{i}": {"type": "string", "format": f}}} for i, f in enumerate(FORMATS)],
    },
    "properties of unlucky names": {
        "type": "object",
        "properties": {
            "pattern": {"type": "string"},
            "const": {},
            "multipleOf": {},
            "$ref": {},
            "anyOf": {"type": "null"},
        },
    },
}

TOO_MUCH: dict[str, tuple[dict[str, Any], str]] = {
    "many objects": ({"enum": [{}] * MAX_NODES}, str(MAX_NODES)),
    "very many values": ({"enum": list(range(50_000))}, str(MAX_NODES)),
    "many characters": ({"description": "x" * MAX_CHARACTERS}, str(MAX_CHARACTERS)),
    "many branches": (any_of([{"type": "array", "items": V}] * (MAX_CHOICES + 2)), str(MAX_CHOICES)),
    "many counts": ({"properties": {f"p{i}": {"maxItems": i} for i in range(40)}}, "40 of minItems"),
    "a large count": ({"type": "array", "minItems": 100_000}, "minItems is 100000"),
    "a long text": ({"type": "string", "maxLength": 10**9}, "maxLength is 1000000000"),
    "a long constant": ({"const": "x" * 600}, "const has 600"),
    "a long text in a constant": ({"const": {"a": ["x" * 600]}}, "has 600"),
    "a long constant in an enum": ({"enum": ["x" * 600]}, "enum has 600"),
    "a long name": ({"properties": {"x" * 600: {}}}, "a name has 600"),
    "a long pattern": ({"pattern": "x" * 600}, "pattern has 600"),
    "an odd multiple": ({"type": "integer", "multipleOf": 99_999_989}, "multipleOf is 99999989"),
    "a huge multiple": ({"multipleOf": 10**400 + 1}, "multipleOf is very large"),
    "a huge count": ({"maxItems": 10**400}, "maxItems is very large"),
    "no number": ({"multipleOf": float("nan")}, "multipleOf"),
    "a bound in a property of an unlucky name": ({"properties": {"const": {"multipleOf": 7919}}}, "7919"),
    "much that is required": ({"required": [f"p{i}" for i in range(300)]}, "requires 300"),
    "patterns of names": ({"patternProperties": {"^a": {}}}, "patternProperties"),
    "names that fit a pattern": ({"propertyNames": {"pattern": "^a"}}, "propertyNames"),
    "many patterns": ({"anyOf": [{"pattern": f"a{i}"} for i in range(17)]}, "17 patterns"),
    "patterns for one text": (
        {"allOf": [{"pattern": f"(a|b)*a.{{{i}}}"} for i in range(4)]},
        "beside",
    ),
    "the same by references": (
        {"$defs": {"a": {"$ref": "#/$defs/b", "pattern": "x"}, "b": {"anyOf": [{"pattern": "y"}] * 4}}},
        "beside",
    ),
    "patterns one within the other": (tower(lambda inner: {"allOf": [inner]}), "beside"),
    "patterns beside choices": (tower(lambda inner: {"anyOf": [inner]}), "beside"),
    "a property again in each branch": (
        tower(lambda inner: {"anyOf": [inner]}, lambda pattern: {"properties": {"x": pattern}}),
        "beside",
    ),
    "multiples of several numbers": ({"anyOf": [{"multipleOf": n} for n in (97, 89, 83)]}, "more than 2 different"),
    "choices beside references": (chain(6, lambda to: {"anyOf": [{"type": t} for t in TYPES], **to}), "choices"),
    "a long chain of references": (chain(1300, lambda to: {"items": to}), str(MAX_NODES)),
    "deep nesting": (nested(5000), str(MAX_NODES)),
}

WITHIN: dict[str, dict[str, Any]] = {
    "formats that say nothing": any_of([{"type": "string", "format": f"f{i}"} for i in range(17)]),
    "names that may be any": {"propertyNames": {"type": "string"}},
    "patterns that formats have of their own": {"allOf": [{"format": "time", "pattern": FINER["time"]}] * 3},
}


@pytest.mark.parametrize("schema", WITHIN.values(), ids=WITHIN)
def test_what_costs_nothing_counts_for_nothing(schema: dict[str, Any]) -> None:
    assert excess(schema) == ""


WORST: dict[str, dict[str, Any]] = {
    "times that must fit their patterns again and again": {
        "allOf": [{"type": "string", "format": form, "pattern": FINER[form]} for form in ("date-time", "time", "time")]
        + [{"pattern": pattern} for pattern in FINER.values()] * 3
    },
    "branches in branches": any_of([{"type": "array", "items": V}] * MAX_CHOICES),
    "branches in counted branches": any_of([{"type": "array", "items": V, "maxItems": 1000 - i} for i in range(32)]),
    "tuples": any_of([{"type": "array", "prefixItems": [V] * 3, "items": False}] * MAX_CHOICES),
    "objects in objects": any_of([{"type": "object", "properties": {"a": V, "b": V, "c": V}}] * MAX_CHOICES),
    "lengths": any_of([{"type": "string", "minLength": i, "maxLength": 20_000 - i} for i in range(MAX_CHOICES)]),
    "patterns": any_of([{"type": "string", "pattern": f"^(.*a.{{{i + 20}}})$"} for i in range(16)]),
    "three patterns at once": {
        "allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i * 7 + 13}}}"} for i in range(3)]
    },
    "a pattern in a pattern": {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
    "a chain": chain(160, lambda to: {"items": to}),
    "a chain of objects": chain(120, lambda to: {"properties": {"a": to}}),
    "a chain that doubles": chain(80, lambda to: {"type": "object", "properties": {"x": to, "y": to}}),
    "a chain of choices": chain(120, lambda to: {"anyOf": [to]}),
    "a chain with a choice each": chain(40, lambda to: {"anyOf": [to, {"type": "array", "items": to}]}),
    "choices beside references": chain(5, lambda to: {"anyOf": [{"type": t} for t in TYPES], **to}),
    "much that is required of any": {
        "required": [f"p{i}" for i in range(250)],
        "anyOf": [{"type": "object", "minProperties": n} for n in range(10)],
    },
    "two multiples at once": {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89)]},
    "two multiples with decimals": {
        "anyOf": [{"type": "number", "multipleOf": n} for n in (0.97, 8900, 0.000001, 1000)]
    },
    "properties": {"properties": {f"p{i}": {"type": "integer", "minimum": i, "maximum": 10**9} for i in range(220)}},
    "ranges": {
        "items": {"anyOf": [{"type": "integer", "minimum": -(10**17) + i, "maximum": 10**18} for i in range(40)]}
    },
    "texts": {"enum": ["x" * 500 + str(i) for i in range(30)]},
    "a text that no token begins": {"const": "▁" * 512},
}


@pytest.mark.parametrize("schema", ORDINARY.values(), ids=ORDINARY)
def test_what_people_write_is_far_from_every_bound(schema: dict[str, Any]) -> None:
    assert excess(schema) == ""
    assert problem_of(json_grammar(schema)) == ""


@pytest.mark.parametrize(("schema", "word"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_too_much_is_refused_at_once_with_its_limit(schema: dict[str, Any], word: str) -> None:
    begun = time.process_time()
    assert word in excess(schema)
    assert time.process_time() - begun < 5


@pytest.fixture(scope="module")
def compiler(smollm2_dir: Path) -> GrammarCompiler:
    compiler = GrammarCompiler(smollm2_dir, 49_152, 1)
    compiler.compile(json_grammar({})).result(60)
    return compiler


@pytest.mark.parametrize("schema", WORST.values(), ids=WORST)
def test_the_worst_that_is_let_through_costs_little(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    """Some tens of milliseconds to compile, and as few for a token. What is asserted is a multiple for slow machines:
    where a bound does not hold, it is minutes."""
    import numpy as np

    assert excess(schema) == ""
    begun = time.process_time()
    problem_of(json_grammar(schema))
    matcher: Any = compiler.compile(json_grammar(schema)).result(60)
    for step in range(60):
        (row,) = compiler.allowed([matcher])
        tokens = np.flatnonzero(np.unpackbits(row, bitorder="little"))[2:]  # not the ends
        if matcher.problem or not len(tokens):
            break
        matcher.advance(int(tokens[step * 7919 % len(tokens)]))
    assert time.process_time() - begun < 3


def test_the_bounds_count_json_as_it_is_sent() -> None:
    assert excess(json.loads('{"description": "' + "你" * (MAX_CHARACTERS - 19) + '"}')) == ""
    assert "characters" in excess({"description": "你" * MAX_CHARACTERS})


class Counting(list[int]):
    """Many numbers, and how many of them were looked at."""

    looked_at = 0

    def __iter__(self) -> Iterator[int]:
        for value in super().__iter__():
            self.looked_at += 1
            yield value


def test_of_very_many_values_only_the_first_are_looked_at() -> None:
    many = Counting([0] * 1_000_000)
    assert "very many values" in excess({"enum": many})
    assert many.looked_at <= MAX_VALUES


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"minimum": math.nan}, "a number is beyond"),
        ({"minimum": math.inf}, "a number is beyond"),
        ({"minimum": 10**4000}, "a number is beyond"),
        ({"const": "\ud800"}, "half a surrogate pair"),
        ({"properties": {"\ud800": {}}}, "half a surrogate pair"),
        ({"const": {"\ud800": "x" * 513}}, "half a surrogate pair"),
        ({"const": {"a": "x" * 513}}, "a text of a constant has 513"),
        (nested(130), "nested deeper than 120 levels"),
    ],
)
def test_what_no_json_is_made_of_is_refused_in_words(schema: dict[str, Any], words: str) -> None:
    assert words in excess(schema)


def test_as_deep_as_it_may_be_is_kept_to(compiler: GrammarCompiler) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(MAX_LEVELS // 2 - 1):
        deep = {"type": "object", "properties": {"a": deep}}
    assert excess(deep) == ""
    assert problem_of(json_grammar(deep)) == ""
