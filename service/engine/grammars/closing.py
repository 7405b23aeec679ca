"""What a client's schema holds an answer, or the arguments of a call, to."""

from collections.abc import Callable, Iterator
from typing import Any

from service.engine.grammars.bounds import FINER, is_note

NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values hold a schema for each name."""
VALUES = ("const", "enum", "required")
"""Keywords whose values are no schemas."""
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties"}
"""Keywords that say whether there may be more properties than those that are listed."""
UNKEPT = {"contains", "dependentRequired", "dependentSchemas", "else", "if", "maxContains", "minContains", "not"}
UNKEPT |= {"propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"}
"""Keywords that the library knows nothing of; pydantic writes `uniqueItems` for each set."""
JOINED = {"properties", "$ref", "anyOf", "oneOf", "allOf", "dependentSchemas"}
"""Keywords of which each may list properties. Where there are several, one lists what another one does not."""

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
    left: dict[str, Any] = _changed("", schema, lambda each: {k: v for k, v in each.items() if k not in UNKEPT})
    return left


def _is_joined(schema: dict[str, Any]) -> bool:
    all_of = schema.get("allOf")
    return len(JOINED & schema.keys()) > 1 or (isinstance(all_of, list) and len(all_of) > 1)


class _TooDeep(Exception):
    """There are more levels than are looked at."""


def _changed(key: str, value: Any, change: Change, levels: int = 1 + DEEPEST) -> Any:
    """The value of a keyword with every schema in it changed, the outer ones first; `key` is empty for one in a list,
    and for one of a name. Raises _TooDeep."""
    if not isinstance(value, dict | list) or key in VALUES:
        return value
    if not levels:
        raise _TooDeep
    if isinstance(value, list):
        return [_changed("", each, change, levels - 1) for each in value]
    if key in NAMED:
        return {name: _changed("", each, change, levels - 1) for name, each in value.items()}
    return {name: _changed(name, each, change, levels - 1) for name, each in change(value).items()}


def _without_notes(schema: dict[str, Any]) -> dict[str, Any]:
    said = {name: each for name, each in schema.items() if not is_note(name, each)}
    form = said.get("format")
    return ({"pattern": FINER[form]} if isinstance(form, str) and form in FINER else {}) | said


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    return schema | ({"additionalProperties": False} if _lists_all(schema) else {})


def _lists_all(schema: dict[str, Any]) -> bool:
    """Not where it says that there may be others, or requires one."""
    required, listed = schema.get("required"), schema.get("properties")
    if not isinstance(listed, dict) or OPEN & schema.keys():
        return False
    return not isinstance(required, list) or all(str(each) in listed for each in required)


def _schemas(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """All schemas in a value, itself first; `key` as for `_changed`."""
    if not isinstance(value, dict | list) or key in VALUES:
        return
    if isinstance(value, dict) and key not in NAMED:
        yield value
    for name, each in value.items() if isinstance(value, dict) else (("", each) for each in value):
        yield from _schemas("" if key in NAMED else name, each)
