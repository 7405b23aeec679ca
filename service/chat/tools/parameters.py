"""What a tool's parameters hold its calls to."""

import json
from typing import Any

ANNOTATIONS = {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
ANNOTATIONS |= {"$comment", "$schema"}
"""What only people and models read."""
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values hold a schema for each name."""
VALUES = ("const", "enum", "required")
"""Keywords whose values are no schemas."""
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "$ref", "anyOf", "oneOf"}
"""Keywords by which there may be more properties than those that are listed beside them."""

DEEPEST = 64
"""Levels that are looked at; people write a handful."""


def held_to(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """A schema whose every object fits `parameters`; None where they are nested too deeply.

    It has no annotations. And an object has the properties that are listed, if some are and nothing says that there may
    be others: a function seldom takes arguments that it does not know, though schemas seldom forbid them.
    """
    try:
        bare: dict[str, Any] = _bare("", parameters, 1 + DEEPEST)
    except _TooDeep:
        return None
    # What is listed in one place may be what another one adds.
    return bare if '"allOf"' in json.dumps(bare) else _closed("", bare)


class _TooDeep(Exception):
    """There are more levels than are looked at."""


def _bare(key: str, value: Any, levels: int) -> Any:
    """The value of a keyword without annotations; `key` is empty for one in a list, and for one of a name."""
    if not isinstance(value, dict | list) or key in VALUES:
        return value
    if not levels:
        raise _TooDeep
    if isinstance(value, list):
        return [_bare("", each, levels - 1) for each in value]
    if key in NAMED:
        return {name: _bare("", each, levels - 1) for name, each in value.items()}
    return {name: _bare(name, each, levels - 1) for name, each in value.items() if name not in ANNOTATIONS}


def _closed(key: str, value: Any) -> Any:
    """The same without more properties than are listed; `key` as for `_bare`."""
    if not isinstance(value, dict | list) or key in VALUES:
        return value
    if isinstance(value, list):
        return [_closed("", each) for each in value]
    if key in NAMED:
        return {name: _closed("", each) for name, each in value.items()}
    lists_all = "properties" in value and not OPEN & value.keys()
    closed = {name: _closed(name, each) for name, each in value.items()}
    return closed | ({"additionalProperties": False} if lists_all else {})
