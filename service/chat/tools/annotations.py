"""Schemas without what only people and models read in them."""

from typing import Any

ANNOTATIONS = {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
ANNOTATIONS |= {"$comment", "$schema"}
NAMED = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
"""Keywords whose values hold a schema for each name."""
VALUES = ("const", "enum", "required")
"""Keywords whose values are no schemas."""

DEEPEST = 64
"""Levels that are looked at; people write a handful."""


def without_annotations(schema: dict[str, Any]) -> dict[str, Any] | None:
    """`schema` as far as it says what fits it; None for one that is nested too deeply."""
    try:
        return {key: _bare(key, value, DEEPEST) for key, value in schema.items() if key not in ANNOTATIONS}
    except _TooDeep:
        return None


class _TooDeep(Exception):
    """There are more levels than are looked at."""


def _bare(key: str, value: Any, levels: int) -> Any:
    """The value of a keyword, of a list without one, or of a name among NAMED, where `key` is empty."""
    if not isinstance(value, dict | list) or key in VALUES:
        return value
    if not levels:
        raise _TooDeep
    if isinstance(value, list):
        return [_bare("", each, levels - 1) for each in value]
    if key in NAMED:
        return {name: _bare("", each, levels - 1) for name, each in value.items()}
    return {name: _bare(name, each, levels - 1) for name, each in value.items() if name not in ANNOTATIONS}
