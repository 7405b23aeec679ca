"""Tools, as in OpenAI's API: those that a client offers, and the calls and results that its conversation has.

Source: https://platform.openai.com/docs/guides/function-calling
"""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FailFast, Field, PlainValidator, WithJsonSchema

from service.api.fields import MAX_TEXT_CHARACTERS, Label, Strict, Text
from service.chat.tools import markup

MAX_TOOLS = 128

NAME = "^[a-zA-Z0-9_-]{1,64}$"
Name = Annotated[str, Field(pattern=NAME)]


class Function(Strict):
    """A tool that the client can call. Calls fit `parameters`, a JSON schema, unless that cannot be kept to; with
    `strict` such a schema is refused."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="Unset: it is called with nothing.")
    strict: bool | None = None


class FunctionTool(Strict):
    """A tool, of the one type that there is."""

    type: Literal["function"]
    function: Function


def _as_text(value: object) -> str:
    """What a JSON value is as text. Raises ValueError for what can't be any."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except (ValueError, RecursionError):  # half a surrogate pair; levels without end
        raise ValueError("it is nested too deeply, or holds half a surrogate pair, as \\ud800 alone is") from None
    return text


def _bounded(tools: list[FunctionTool]) -> list[FunctionTool]:
    characters = sum(len(tool.function.description or "") + len(_as_text(tool.function.parameters)) for tool in tools)
    if characters > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"its tools have {characters} characters together; at most {MAX_TEXT_CHARACTERS} are read. Offer fewer."
        )
    return tools


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS), FailFast(), AfterValidator(_bounded)]
"""At the first fault the others are not looked at: to complain of each would take seconds in which nobody is served."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether a tool is called: `mode` is none, auto or required, which one of them where it is `name`d."""

    mode: str
    name: str = ""


def _chosen(choice: object) -> ToolChoice:
    match choice:
        case "none" | "auto" | "required":
            return ToolChoice(str(choice))
        case {"type": "function", "function": {"name": str(name), **inside}, **beside} if not inside and not beside:
            if re.fullmatch(NAME, name):
                return ToolChoice("required", name)
    raise ValueError('it is none, auto, required or {"type": "function", "function": {"name": "…"}}, by a tool\'s name')


Choice = Annotated[
    ToolChoice,
    PlainValidator(_chosen),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["none", "auto", "required"]},
                {
                    "type": "object",
                    "properties": {
                        "type": {"enum": ["function"]},
                        "function": {"type": "object", "properties": {"name": {"type": "string"}}},
                    },
                    "required": ["type", "function"],
                },
            ]
        }
    ),
]


def _an_object(arguments: str) -> str:
    try:
        called_with = json.loads(arguments or "{}")
        _as_text(called_with)
    except (ValueError, RecursionError):
        called_with = None
    if not isinstance(called_with, dict):
        raise ValueError("it is not the text of a JSON object")
    return arguments


class EarlierFunction(Strict):
    """Which tool was called, and with what: the text of a JSON object."""

    name: Name
    arguments: Annotated[Text, AfterValidator(_an_object)]


class EarlierCall(Strict):
    """A call in an earlier answer. Its place among the answer's calls, `index`, is that in their list."""

    id: Label
    type: Literal["function"] = "function"
    function: EarlierFunction
    index: int | None = None

    @property
    def characters(self) -> int:
        """About as many as the model is told of it: marks and names are text, too."""
        return len(markup.call(self.function.name, {})) + len(self.function.arguments)


Calls = Annotated[list[EarlierCall], Field(max_length=MAX_TOOLS), FailFast()]
