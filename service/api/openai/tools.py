"""Tools, as in OpenAI's API: those that a client offers, and the calls and results that its conversation has.

Source: https://platform.openai.com/docs/guides/function-calling
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from service.api.fields import MAX_TEXT_CHARACTERS, Label, Strict, Text

MAX_TOOLS = 128

Name = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


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


def _bounded(tools: list[FunctionTool]) -> list[FunctionTool]:
    characters = sum(len(tool.model_dump_json()) for tool in tools)
    if characters > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"its tools have {characters} characters together; at most {MAX_TEXT_CHARACTERS} are read. Offer fewer."
        )
    return tools


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS), AfterValidator(_bounded)]


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
            return ToolChoice("required", name)
    raise ValueError('it is none, auto, required or {"type": "function", "function": {"name": "…"}}')


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
        if isinstance(json.loads(arguments or "{}"), dict):
            return arguments
    except (ValueError, RecursionError):
        pass
    raise ValueError("it is not the text of a JSON object")


class CalledFunction(Strict):
    """Which tool was called, and with what: the text of a JSON object."""

    name: Name
    arguments: Annotated[Text, AfterValidator(_an_object)]


class ToolCall(Strict):
    """A call in an earlier answer. Its place among the answer's calls, `index`, is that in their list."""

    id: Label
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None
