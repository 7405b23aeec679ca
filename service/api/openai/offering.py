"""Which of a client's tools the model is told of, which it may call, and what is said where it calls none."""

from collections.abc import Sequence

from service.api.openai.request import ChatMessage, CompletionRequest
from service.api.openai.tools import Function, FunctionTool, ToolChoice
from service.chat.tools.offer import Offer, Tool
from service.errors import InvalidRequest

NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


def offered(body: CompletionRequest, *, are_called: bool, are_ignored: bool) -> list[Tool]:
    """The tools that the model is told of. Raises InvalidRequest for what counts on calls where there are none: the
    model's format has none (`are_called`), or whoever runs the server wants none (`are_ignored`)."""
    require_sayable(body.messages, are_called=are_called)
    require_names(body.tools)
    tools = [] if body.tool_choice.mode == "none" else [_tool(each.function) for each in body.tools]
    if are_called and not are_ignored:
        return tools
    why = "the server is told to ignore them" if are_called else "the model's format has none"
    if body.tool_choice.mode == "required":
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


def offer_of(tools: Sequence[Tool], choice: ToolChoice) -> Offer | None:
    """Those that may be called; None for none. Raises InvalidRequest where one must be that is not there."""
    wanted = tuple(tool for tool in tools if choice.name in ("", tool.name))
    demanded = choice.mode == "required"
    if demanded and not wanted:
        missing = choice.name or "a tool"
        raise InvalidRequest(
            f"tool_choice demands the call of {missing}, which tools do not offer", field="tool_choice"
        )
    return Offer(wanted, demanded) if wanted else None


def require_sayable(messages: Sequence[ChatMessage], *, are_called: bool) -> None:
    """Raises InvalidRequest for calls and results where the model's format has none."""
    for at, message in enumerate([] if are_called else messages):
        field = "tool_calls" if message.tool_calls else "role" if message.role == "tool" else ""
        if field:
            raise InvalidRequest(
                "the model's format has no tools: leave out messages with tool_calls, and those of the role tool",
                field=f"messages.{at}.{field}",
            )


def require_names(tools: Sequence[FunctionTool]) -> None:
    """Raises InvalidRequest for two of one name."""
    names: set[str] = set()
    for at, tool in enumerate(tools):
        if tool.function.name in names:
            raise InvalidRequest(
                f"{tool.function.name} is the name of another tool, too", field=f"tools.{at}.function.name"
            )
        names.add(tool.function.name)


def _tool(function: Function) -> Tool:
    parameters = NO_ARGUMENTS if function.parameters is None else function.parameters
    return Tool(function.name, function.description or "", parameters, function.strict is True)
