"""Tools as responses have them: a tool is a function, without an object around it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FailFast, Field

from service.api.openai.responses import unserved
from service.api.openai.tool_choice import ToolChoice, an_object, choice_schema, chosen, of_some
from service.api.openai.tools import MAX_TOOLS, Function, require_bounded
from service.api.openai.unserved import without
from service.engine.grammars.bounds import is_deeper
from service.errors import InvalidRequest

MOST_LEVELS = 100
"""Of what a response repeats: pydantic writes at most some two hundred."""


class ResponseTool(Function):
    """A tool, of the one type that there is."""

    type: Literal["function"]

    def repeated(self) -> dict[str, Any]:
        """As a response tells it again."""
        return self.model_dump() | {"strict": self.strict is True}


def cleaned_tools(tools: list[Any]) -> list[Any]:
    """Tools that nobody has checked yet, without nulls and hints. Raises InvalidRequest for what is not served."""
    for at, tool in enumerate(tools):
        kind = tool.get("type", "function") if isinstance(tool, dict) else "function"
        if kind != "function":
            raise InvalidRequest(
                "of tools, those of the type function alone are served, which the client calls itself; "
                "switch others off in the client",
                field=f"tools.{at}.type",
            )
    return [without(unserved.OF_TOOL, tool, f"tools.{at}.") for at, tool in enumerate(tools)]


def _bounded(tools: list[ResponseTool]) -> list[ResponseTool]:
    require_bounded(tools)
    for tool in tools:
        if is_deeper(tool.parameters, MOST_LEVELS):
            raise ValueError(f"the parameters of {tool.name} are nested deeper than {MOST_LEVELS} levels")
    return tools


Tools = Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS), FailFast(), AfterValidator(_bounded)]


def _name_in(choice: object) -> str | None:
    match choice:
        case {"type": "function", "name": str(name), **beside} if not beside:
            return name
    return None


def _some_in(choice: object) -> object:
    match choice:
        case {"type": "allowed_tools", **inside}:
            return inside
    return None


_BY_NAME = an_object(type={"enum": ["function"]}, name={"type": "string"})
Choice = Annotated[
    ToolChoice,
    chosen(_name_in, _some_in, '{"type": "function", "name": "…"}'),
    choice_schema(_BY_NAME, an_object(type={"enum": ["allowed_tools"]}, **of_some(_BY_NAME))),
]


def choice_repeated(choice: ToolChoice) -> str | dict[str, Any]:
    """As a response tells it again."""
    if choice.among:
        return {"type": "allowed_tools", "mode": choice.mode, "tools": list(map(_named, choice.among))}
    return _named(choice.name) if choice.name else choice.mode


def _named(tool: str) -> dict[str, str]:
    return {"type": "function", "name": tool}
