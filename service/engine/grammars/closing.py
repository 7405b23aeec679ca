"""What a client's schema holds an answer, or the arguments of a call, to."""

from collections.abc import Callable, Iterator
from typing import Any

from service.engine.grammars.bounds import FINER, UNKEPT_FORMATS, is_note

NAMED = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
"""Keywords whose values hold a schema for each name."""
HOLDING = {"additionalItems", "additionalProperties", "allOf", "anyOf", "contains", "contentSchema", "else", "if"}
HOLDING |= {"items", "not", "oneOf", "prefixItems", "propertyNames", "then"}
HOLDING |= {"unevaluatedItems", "unevaluatedProperties"}
"""Keywords whose values are schemas, or lists of some. Nothing else in a schema is one."""
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties"}
"""Keywords that say, unless they are false, that there may be more properties than those that are listed."""
UNKEPT = {"contains", "else", "if", "maxContains", "minContains", "not", "propertyNames", "then", "uniqueItems"}
UNKEPT |= {"dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"}
"""Keywords that the library refuses; pydantic writes `uniqueItems` for each set."""
REFERRING = {"$ref", "anyOf", "oneOf", "allOf"}
JOINED = REFERRING | {"properties"}
"""Keywords of which each may list properties. Where there are several, one lists what another one does not."""
CONDITIONS = {"dependencies", "dependentRequired", "dependentSchemas", "else", "if", "then"}
"""Keywords that may list more, or require it, of some objects."""

DEEPEST = 64
"""Levels that are looked at; people write a handful."""
Change = Callable[[dict[str, Any]], dict[str, Any]]


def held_to(schema: dict[str, Any]) -> dict[str, Any] | None:
    """A schema whose every document fits `schema`; None where that is nested too deeply.

    It has nothing that says nothing. And an object has the properties that are listed, unless something says that there
    may be others: a model that may go on with names of its own does so to the answer's limit, and whoever lists names
    seldom takes others, though schemas seldom forbid them. That is left alone where a schema is joined of several,
    which list a part each.
    """
    try:
        bare: dict[str, Any] = _changed("", schema, _without_notes)
    except _TooDeep:
        return None
    closed: dict[str, Any] = _changed("", bare, _closed)
    return bare if any(map(_is_joined, _schemas("", bare))) else closed


def without_unkept(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, which is one that `held_to` made, without the keywords that no answer can be held to: its documents fit
    what is left, and may not fit those."""
    left: dict[str, Any] = _changed("", schema, _kept)
    return left


class _TooDeep(Exception):
    """There are more levels than are looked at."""


def _changed(key: str, value: Any, change: Change, levels: int = 1 + DEEPEST) -> Any:
    """The value of a keyword with every schema in it changed, the outer ones first; `key` is empty for one in a list,
    and for one of a name. Raises _TooDeep."""
    if not isinstance(value, dict | list):
        return value
    if not levels:
        raise _TooDeep
    if isinstance(value, list):
        return [_changed("", each, change, levels - 1) for each in value]
    if key in NAMED:
        return {name: _changed("", each, change, levels - 1) for name, each in value.items()}
    return {
        name: _changed(name, each, change, levels - 1) if name in NAMED | HOLDING else each
        for name, each in change(value).items()
    }


def _without_notes(schema: dict[str, Any]) -> dict[str, Any]:
    said = {name: each for name, each in schema.items() if not is_note(name, each)}
    form = said.get("format")
    # Not beside what may say what such a pattern forbids.
    is_plain = isinstance(form, str) and said.keys() <= {"type", "format"}
    return said | ({"pattern": FINER[form]} if is_plain and form in FINER else {})


def _kept(schema: dict[str, Any]) -> dict[str, Any]:
    form = schema.get("format")
    unkept = UNKEPT | ({"format"} if isinstance(form, str) and form in UNKEPT_FORMATS else set())
    return {name: each for name, each in schema.items() if name not in unkept}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | ({"additionalProperties": False} if _lists_all(schema) else {})


def _lists_all(schema: dict[str, Any]) -> bool:
    """Not where it says that there may be others, or requires one."""
    required, listed = schema.get("required"), schema.get("properties")
    if not isinstance(listed, dict) or _is_open(schema):
        return False
    return not isinstance(required, list) or all(str(each) in listed for each in required)


def _is_open(schema: dict[str, Any]) -> bool:
    return any(schema.get(keyword, False) is not False for keyword in OPEN)


def _is_joined(schema: dict[str, Any]) -> bool:
    """Whether one schema says something of the properties that another one lists."""
    all_of, says_more = schema.get("allOf"), "required" in schema or _is_open(schema)
    several = len(JOINED & schema.keys()) > 1 or (isinstance(all_of, list) and len(all_of) > 1)
    return several or bool(CONDITIONS & schema.keys()) or (says_more and bool(REFERRING & schema.keys()))


def _schemas(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """All schemas in a value, itself first; `key` as for `_changed`."""
    if isinstance(value, list):
        for each in value:
            yield from _schemas("", each)
    elif isinstance(value, dict) and key in NAMED:
        for each in value.values():
            yield from _schemas("", each)
    elif isinstance(value, dict):
        yield value
        for name in value.keys() & (NAMED | HOLDING):
            yield from _schemas(name, value[name])
