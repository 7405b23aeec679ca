"""How much a schema may ask for. More is refused before the library sees it: some schemas of a few bytes would take it
minutes and gigabytes, and its stack ends.

Each bound is far above what schemas that people write have, and was set by what the worst schemas within them cost: see
tests/engine/grammars/test_bounds.py.
"""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

MAX_CHARACTERS = 16_384
MAX_NODES = 500
"""Objects and lists in all. References form chains through them, each link of which is a frame on the library's stack,
which holds a thousand."""
MAX_VALUES = 10_000
"""Of any kind: more are not looked at."""
MAX_CHOICES, MAX_CHOICES_AT_ONCE = 40, 10
"""Choices that anyOf and allOf leave, each branch but the first and null being one: all are looked at for every token
while an answer may be any of them. And where it must fit several such at once, whose products are looked at."""
MAX_REQUIRED = 250
"""Names of required properties in all."""
MAX_COUNTS = 32
"""Bounds of how many items or properties there are: in branches of each other, their products are looked at."""
MAX_TEXT = 512
"""Characters of a text that is forced: a name, or one in a constant. And of a pattern."""
MAX_PATTERNS, MAX_PATTERNS_AT_ONCE = 16, 3
"""Different patterns and formats; and where a text must fit several at once. Sixteen so took minutes and gigabytes."""
MAX_ITEMS = 1000
"""Of items, and of properties."""
MAX_LENGTH = 20_000
"""Of strings."""
MAX_NUMBER = 10**308
MAX_LEVELS = 120
"""Of objects and lists in each other: the library reads no deeper JSON, and puts some around the schema."""

_SURROGATE = re.compile("[\ud800-\udfff]")

MAX_MULTIPLE, MAX_MULTIPLES = 100, 2
"""What numbers may be multiples of, and of how many different ones, powers of ten apart: an automaton has as
many states as their product."""

REFUSED = ("patternProperties", "propertyNames")
"""Keywords whose cost grows with the square of what they list."""
COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
LENGTHS = ("minLength", "maxLength")
CHOICES = ("anyOf", "oneOf", "allOf")
PATTERNS = ("pattern", "format")
CONSTANTS = ("const", "enum")
NAME = "a name"
NOTES = {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
NOTES |= {"$schema", "$comment"}
"""What only people and models read."""
FORMATS = frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"})
"""Those that the library keeps to."""
UNKEPT_FORMATS = {"idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer"}
UNKEPT_FORMATS |= {"uri-reference", "uri-template"}
"""JSON Schema's others (2020-12, Validation, 7). What is none of either is a note: some library's own, often beside a
pattern that says the same."""
_TIME = r"[0-9]{2}:[0-9]{2}:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})$"
FINER = {"date-time": rf"^[^ ]{{10}}T{_TIME}", "time": rf"^{_TIME}"}
"""A pattern of what most readers take of a format: RFC 3339 has leap seconds, small letters and endless fractions, too,
and a model may go on with these to the answer's limit."""
ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})
"""What every property's name fits."""
ANNOTATIONS = NOTES | {"$ref", "$defs", "definitions", "$id", "discriminator", "type"}
"""What stands beside a reference or a choice without narrowing it."""


def is_note(keyword: str, value: Any) -> bool:
    """Whether a keyword says nothing of what a value may be."""
    if keyword == "format":
        return isinstance(value, str) and value not in FORMATS | UNKEPT_FORMATS
    return keyword in NOTES or (keyword == "propertyNames" and value in ANY_NAME)


class _Entry(NamedTuple):
    """A value somewhere in a schema, the key that it has there, and whether it is a constant, or part of one."""

    key: str
    value: Any
    is_constant: bool = False


def excess(schema: dict[str, Any]) -> str:
    """What of a schema is more than is kept to, with the limit and the way out; "" if nothing is."""
    entries = list(islice(_entries(schema), MAX_VALUES))
    nodes = sum(isinstance(entry.value, dict | list) for entry in entries)
    if nodes > MAX_NODES or len(entries) == MAX_VALUES:
        return f"it has more than {MAX_NODES} objects and lists, or very many values; ask for less at once"
    if is_deeper(schema, MAX_LEVELS):
        return f"it is nested deeper than {MAX_LEVELS} levels of objects and lists; name parts of it in $defs"
    text = json.dumps(schema, ensure_ascii=False)
    if not text.isascii() and _SURROGATE.search(text):
        return "it holds half a surrogate pair, as \\ud800 alone is, which is no text; leave that out"
    characters = len(text)
    if characters > MAX_CHARACTERS:
        return (
            f"it has {characters} characters, more than {MAX_CHARACTERS}; leave out its descriptions, or ask for less"
        )
    return next(filter(None, map(_excess_of_value, entries)), "") or _excess_of_many(entries)


def _entries(schema: dict[str, Any]) -> Iterator[_Entry]:
    """Every value in a schema, itself first, without recursion: it may be nested as deeply as a body can be."""
    waiting = [iter([_Entry("", schema)])]  # and none is made before it is asked for: there may be millions
    while waiting:
        entry = next(waiting[-1], None)
        if entry is None:
            waiting.pop()
            continue
        yield entry
        waiting.append(_inside(entry))


def _inside(entry: _Entry) -> Iterator[_Entry]:
    is_constant = entry.is_constant or entry.key in CONSTANTS
    if isinstance(entry.value, dict):
        for key, value in entry.value.items():
            yield _Entry(NAME, key)
            yield _Entry(key, value, is_constant)
    elif isinstance(entry.value, list):
        for value in entry.value:
            yield _Entry("", value, is_constant)


def is_deeper(value: dict[str, Any] | None, levels: int) -> bool:
    """Whether objects and lists lie in each other more often."""
    layer: list[Any] = [{} if value is None else value]
    for _ in range(levels):
        inner = (each for outer in layer for each in (outer.values() if isinstance(outer, dict) else outer))
        layer = [each for each in inner if isinstance(each, dict | list)]
    return bool(layer)


def _excess_of_value(entry: _Entry) -> str:
    key, value = entry.key, entry.value
    if key in REFUSED and isinstance(value, dict) and not is_note(key, value):
        return f"{key} is not kept to; name the properties"
    is_forced = entry.is_constant or key in (NAME, "const", "pattern")
    if isinstance(value, str) and is_forced and len(value) > MAX_TEXT:
        where = "enum" if not key else key if key in (NAME, *CONSTANTS, "pattern") else "a constant"
        return f"a text of {where} has {len(value)} characters, more than {MAX_TEXT}"
    if not isinstance(value, int | float):
        return ""
    if key == "multipleOf" and _digits(value) > MAX_MULTIPLE:
        return f"multipleOf is {_shown(value)}; only 1 to {MAX_MULTIPLE}, times a power of ten, is kept to"
    most = MAX_ITEMS if key in COUNTS else MAX_LENGTH if key in LENGTHS else value
    if value > most:
        return f"{key} is {_shown(value)}, more than {most}"
    return "" if abs(value) < MAX_NUMBER else "a number is beyond what numbers may be, 1e308, or none"  # as NaN is


def _digits(number: float) -> int:
    """What is left of a number without its power of ten, if it has few digits; else more than is kept to."""
    if not 1e-7 < abs(number) < 1e15:
        return MAX_MULTIPLE + 1
    digits = filter(str.isdigit, f"{number:.12g}".partition("e")[0])
    return int("".join(digits).strip("0") or 0)


def _shown(number: float) -> str:
    return f"{number:.12g}" if abs(number) < 1e15 else "very large"


def _excess_of_many(entries: list[_Entry]) -> str:
    at_once = any(map(_narrows, entries))
    beside = " beside what else must fit" if at_once else ""
    choices, most = sum(map(_choices, entries)), MAX_CHOICES_AT_ONCE if at_once else MAX_CHOICES
    if choices > most:
        return f"its {', '.join(CHOICES)} leave {choices} choices, more than {most}{beside}; use an enum, or fewer"
    counts = sum(key in COUNTS and isinstance(value, int | float) for key, value, _ in entries)
    if counts > MAX_COUNTS:
        return f"it has {counts} of {', '.join(COUNTS)}, more than {MAX_COUNTS}; leave some out"
    required = sum(len(value) for key, value, _ in entries if key == "required" and isinstance(value, list))
    if required > MAX_REQUIRED:
        return f"it requires {required} properties, more than {MAX_REQUIRED}; ask for less at once"
    multiples = {value for key, value, _ in entries if key == "multipleOf" and isinstance(value, int | float)}
    if sum(_digits(each) > 1 for each in multiples) > MAX_MULTIPLES:
        return f"it has more than {MAX_MULTIPLES} different numbers in multipleOf, powers of ten apart; leave some out"
    texts = [(key, value) for key, value, _ in entries if key in PATTERNS and isinstance(value, str)]
    patterns = [each for each in texts if not is_note(*each) and each[1] not in FINER.values()]
    count, most = (len(patterns), MAX_PATTERNS_AT_ONCE) if at_once else (len(set(patterns)), MAX_PATTERNS)
    if count > most:
        return f"it has {count} patterns and formats, more than {most}{beside}; leave some out"
    return ""


def _choices(entry: _Entry) -> int:
    """One for each branch more than the first, null apart."""
    if entry.key not in CHOICES or not isinstance(entry.value, list):
        return 0
    branches = [branch for branch in entry.value if branch != {"type": "null"}]
    return max(0, len(branches) - 1)


def _narrows(entry: _Entry) -> bool:
    """Whether a value may have to fit several schemas at once here."""
    key, value = entry.key, entry.value
    if isinstance(value, dict) and (joined := {"$ref", *CHOICES} & value.keys()):
        is_alone = len(joined) == 1 and value.keys() <= ANNOTATIONS | joined
        if not (is_alone or _is_named(value)):
            return True
    return key == "allOf" and isinstance(value, list) and len(value) > 1


def _is_named(properties: dict[str, Any]) -> bool:
    """Properties may have any names, those of keywords too; then what they are called holds a schema."""
    return all(isinstance(value, dict) for value in properties.values())
