"""Tools as chat completions have them: what a function is lies within an object of its own."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FailFast, Field

from service.api.fields import Strict
from service.api.openai.tool_choice import ToolChoice, an_object, choice_schema, chosen, of_some
from service.api.openai.tools import MAX_TOOLS, Function, require_bounded
from service.api.openai.unserved import without


class FunctionTool(Strict):
    """A tool, of the one type that there is."""

    type: Literal["function"]
    function: Function


def cleaned_tools(tools: list[Any]) -> list[Any]:
    """Tools that nobody has checked yet, without nulls and hints."""
    return list(map(_cleaned, tools))


def _cleaned(tool: Any) -> Any:
    tool = without({}, tool)
    if isinstance(tool, dict) and "function" in tool:
        tool["function"] = without({}, tool["function"])
    return tool


def _bounded(tools: list[FunctionTool]) -> list[FunctionTool]:
    require_bounded(tool.function for tool in tools)
    return tools


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS), FailFast(), AfterValidator(_bounded)]
"""At the first fault the others are not looked at: to complain of each would take seconds in which nobody is served."""


def _name_in(choice: object) -> str | None:
    match choice:
        case {"type": "function", "function": {"name": str(name), **inside}, **beside} if not inside and not beside:
            return name
    return None


def _some_in(choice: object) -> object:
    match choice:
        case {"type": "allowed_tools", "allowed_tools": inside, **beside} if not beside:
            return inside
    return None


_BY_NAME = an_object(type={"enum": ["function"]}, function=an_object(name={"type": "string"}))
Choice = Annotated[
    ToolChoice,
    chosen(_name_in, _some_in, '{"type": "function", "function": {"name": "…"}}'),
    choice_schema(_BY_NAME, an_object(type={"enum": ["allowed_tools"]}, allowed_tools=an_object(**of_some(_BY_NAME)))),
]
