"""Whether a tool is called, and which: what the forms that OpenAI's API has for it in its routes have in common.

Source: https://platform.openai.com/docs/guides/function-calling#tool-choice
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import PlainValidator, WithJsonSchema

from service.api.openai.tools import MAX_TOOLS, NAME

MODES = ("none", "auto", "required")
MODES_OF_SOME = ("auto", "required")


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a tool is called: `mode` is one of MODES. Which one, where it is `name`d; `among` which, where some are
    listed."""

    mode: str
    name: str = ""
    among: tuple[str, ...] = ()

    def allows(self, tool: str) -> bool:
        """Whether the tool of that name may be called, if any is."""
        return tool in self.among if self.among else self.name in ("", tool)


AUTO = ToolChoice("auto")


def chosen(name_in: Callable[[object], str | None], some_in: Callable[[object], object], form: str) -> PlainValidator:
    """Reads a choice: a mode; what `name_in` finds a tool's name in, which has this `form`; or what `some_in` finds a
    mode and a list of such in."""

    def named(choice: object) -> str:
        name = name_in(choice)
        return name if name and re.fullmatch(NAME, name) else ""

    def choose(choice: object) -> ToolChoice:
        if isinstance(choice, str) and choice in MODES:
            return ToolChoice(choice)
        if name := named(choice):
            return ToolChoice("required", name)
        match some_in(choice):
            case {"mode": str(mode), "tools": [*tools], **beside} if not beside and len(tools) <= MAX_TOOLS:
                names = tuple(map(named, tools))
                if names and all(names) and mode in MODES_OF_SOME:
                    return ToolChoice(mode, among=names)
        raise ValueError(
            f"it is none, auto, required, {form} by a tool's name, or allowed_tools: a mode, auto or required, and up "
            f"to {MAX_TOOLS} tools in that form"
        )

    return PlainValidator(choose)


def an_object(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that has these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def of_some(by_name: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schemas of what says that some tools are allowed, each as `by_name`'s schema has it."""
    tools = {"type": "array", "items": by_name, "minItems": 1, "maxItems": MAX_TOOLS}
    return {"mode": {"enum": list(MODES_OF_SOME)}, "tools": tools}


def choice_schema(by_name: dict[str, Any], some: dict[str, Any]) -> WithJsonSchema:
    """The schema of a choice: a mode, one tool `by_name`, or `some`."""
    return WithJsonSchema({"anyOf": [{"enum": list(MODES)}, by_name, some]})
