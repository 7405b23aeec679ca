"""What the forms of tools that OpenAI's API has in its routes have in common: functions and their calls.

Source: https://platform.openai.com/docs/guides/function-calling
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field

from service.api.fields import MAX_TEXT_CHARACTERS, Strict, Text
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
