"""Which of a client's tools the model is told of, which it may call, and what is said where it calls none."""

from collections.abc import Sequence

from service.api.openai.conversation import Turn
from service.api.openai.tool_choice import ToolChoice
from service.api.openai.tools import Function
from service.chat.form import Form
from service.chat.tools.offer import Offer, Tool
from service.errors import InvalidRequest

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def offered(
    functions: Sequence[tuple[str, Function]], choice: ToolChoice, *, are_called: bool, are_ignored: bool
) -> list[Tool]:
    """The tools that the model is told of; `functions`: each with its field of the body. Raises InvalidRequest for what
    counts on calls where there are none: the model's format has none (`are_called`), or whoever runs the server wants
    none (`are_ignored`); also as `require_names` and `require_listed`."""
    require_names(functions)
    require_listed(functions, choice)
    tools = [] if choice.mode == "none" else [_tool(*each) for each in functions]
    if are_called and not are_ignored:
        return tools
    why = "the server is told to ignore them" if are_called else "the model's format has none"
    if choice.mode == "required":
        raise InvalidRequest(
            f"tool_choice demands the call of a tool, and none is called here: {why}. Switch tools off in the client",
            field="tool_choice",
        )
    if tools and not are_ignored:
        raise InvalidRequest(
            f"tools are not called here: {why}. Switch them off in the client (leave them out, or send tool_choice "
            "none), or have the server answer in text all the same (INTERNLM_IGNORE_TOOLS)",
            field="tools",
        )
    return []


def offer_of(tools: Sequence[Tool], choice: ToolChoice, *, thinking: bool) -> Offer | None:
    """Those that may be called; None for none. Raises InvalidRequest where one must be that is not there, or that
    `thinking` leaves no room for."""
    wanted = tuple(tool for tool in tools if choice.allows(tool.name))
    demanded = choice.mode == "required"
    if demanded and not wanted:
        missing = choice.name or "a tool"
        raise InvalidRequest(
            f"tool_choice demands the call of {missing}, which tools do not offer", field="tool_choice"
        )
    if demanded and thinking:
        raise InvalidRequest(
            "thinking writes its reasoning into the answer, and tool_choice allows nothing but a call there; "
            "send one of them",
            field="tool_choice",
        )
    return Offer(wanted, demanded) if wanted else None


def require_callable(offer: Offer | None, form: Form | None) -> None:
    """Raises InvalidRequest for tools beside a pattern: no call is such a text."""
    if offer and form and form.is_pattern:
        raise InvalidRequest(
            f"{form.name} leaves no room for the call of a tool; leave it out, or the tools", field=form.field
        )


def require_sayable(turns: Sequence[Turn], *, are_called: bool) -> None:
    """Raises InvalidRequest for calls and results where the model's format has none (`are_called`)."""
    for turn in [] if are_called else turns:
        if turn.calls or turn.result_of:
            raise InvalidRequest(
                "the model's format has no tools: leave out their calls, and what they gave",
                field=turn.calls[0].field if turn.calls else turn.field,
            )


def require_names(functions: Sequence[tuple[str, Function]]) -> None:
    """Raises InvalidRequest for two of one name."""
    names: set[str] = set()
    for field, function in functions:
        if function.name in names:
            raise InvalidRequest(f"{function.name} is the name of another tool, too", field=f"{field}.name")
        names.add(function.name)


def require_listed(functions: Sequence[tuple[str, Function]], choice: ToolChoice) -> None:
    """Raises InvalidRequest for a choice among some that are not all there."""
    names = {function.name for _, function in functions}
    for name in choice.among:
        if name not in names:
            raise InvalidRequest(f"tool_choice allows {name}, which tools do not offer", field="tool_choice")


def _tool(field: str, function: Function) -> Tool:
    parameters = NO_ARGUMENTS if function.parameters is None else function.parameters
    return Tool(function.name, function.description or "", parameters, function.strict is True, f"{field}.parameters")
