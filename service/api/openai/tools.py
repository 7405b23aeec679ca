"""What the forms of tools that OpenAI's API has in its routes have in common: functions, choices of them, their calls.

Source: https://platform.openai.com/docs/guides/function-calling
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from service.api.fields import MAX_TEXT_CHARACTERS, Strict, Text
from service.chat.tools import markup

MAX_TOOLS = 128

NAME = "^[a-zA-Z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]

MODES = ("none", "auto", "required")


class Function(Strict):
    """A tool that the client can call. Calls fit `parameters`, a JSON schema, unless that cannot be kept to; with
    `strict` such a schema is refused."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="Unset: it is called with nothing.")
    strict: bool | None = None


def _as_text(value: object) -> str:
    """What a JSON value is as text. Raises ValueError for what can't be any."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):  # half a surrogate pair; levels without end
        raise ValueError("it is nested too deeply, or holds half a surrogate pair, as \\ud800 alone is") from None
    return text


def require_bounded(functions: Iterable[Function]) -> None:
    """Raises ValueError for more text than is read of tools."""
    characters = sum(len(each.description or "") + len(_as_text(each.parameters)) for each in functions)
    if characters > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"its tools have {characters} characters together; at most {MAX_TEXT_CHARACTERS} are read. Offer fewer."
        )


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a tool is called: `mode` is one of MODES, and which one of them where it is `name`d."""

    mode: str
    name: str = ""


AUTO = ToolChoice("auto")


def chosen(name_in: Callable[[object], str | None], form: str) -> PlainValidator:
    """Reads a choice: a mode, or what `name_in` finds a tool's name in, which has this `form`."""

    def choose(choice: object) -> ToolChoice:
        if isinstance(choice, str) and choice in MODES:
            return ToolChoice(choice)
        name = name_in(choice)
        if name is None or not re.fullmatch(NAME, name):
            raise ValueError(f"it is none, auto, required or {form}, by a tool's name")
        return ToolChoice("required", name)

    return PlainValidator(choose)


def choice_schema(**properties: dict[str, Any]) -> WithJsonSchema:
    """The schema of a choice: a mode, or an object with these `properties`."""
    by_name = {"type": "object", "properties": properties, "required": list(properties)}
    return WithJsonSchema({"anyOf": [{"enum": list(MODES)}, by_name]})


def called_with(arguments: str) -> object:
    """What a tool was called with, which should be a JSON object. A call that was cut, and whatever else a client sends
    back, is what it is: a text."""
    try:
        value = json.loads(arguments or "{}")
        _as_text(value)
    except (ValueError, RecursionError):
        return arguments
    return value


def call_characters(name: str, arguments: str) -> int:
    """About as many as the model is told of an earlier call: marks and names are text, too."""
    return len(markup.call(name, {})) + len(arguments)
