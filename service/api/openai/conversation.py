"""The messages of OpenAI's API as the model's own: each beside the field of the body that it comes from."""

import json
from collections import defaultdict
from collections.abc import Sequence

from service.api.openai.request import ChatMessage, CompletionRequest
from service.api.openai.tools import EarlierCall
from service.chat.templates import Message
from service.chat.thinking import THINKING_SYSTEM_PROMPT
from service.chat.tools import markup
from service.chat.tools.offer import Tool
from service.errors import InvalidRequest

FromField = tuple[str, Message]


def conversation(body: CompletionRequest, tools: Sequence[Tool]) -> list[FromField]:
    """What the model is asked, and told of `tools`. Raises InvalidRequest for a system prompt beside the one that
    thinking is, and for results of calls that nobody made."""
    require_calls(body.messages)
    messages = spoken(body.messages)
    if body.thinking:
        require_no_system(messages)
        messages = [("thinking", Message("system", THINKING_SYSTEM_PROMPT)), *messages]
    if tools:
        behind = int(messages[0][1].role == "system")
        messages.insert(behind, ("tools", Message(markup.TOOLS, markup.described(tools))))
    return messages


def field_of(index: int | None, messages: Sequence[FromField]) -> str:
    """The field that one of `messages` comes from; `index` None: all of them."""
    return "messages" if index is None else messages[index][0]


def require_no_system(messages: Sequence[FromField]) -> None:
    for name, message in messages:
        if message.role == "system":
            raise InvalidRequest(
                f"thinking is a system prompt of its own; send either thinking or {name}", field="thinking"
            )


def require_calls(messages: Sequence[ChatMessage]) -> None:
    """Raises InvalidRequest unless only the assistant calls, and each result is that of an earlier call."""
    made: set[str] = set()
    for at, message in enumerate(messages):
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest("only an assistant's message has calls", field=f"messages.{at}.tool_calls")
        if message.tool_call_id and message.role != "tool":
            raise InvalidRequest("only a tool's message answers a call", field=f"messages.{at}.tool_call_id")
        if message.role == "tool" and message.tool_call_id not in made:
            raise InvalidRequest(
                "tool_call_id must be the id of a call in an earlier message, whose result this is",
                field=f"messages.{at}.tool_call_id",
            )
        made |= {call.id for call in message.tool_calls}


def spoken(messages: Sequence[ChatMessage]) -> list[FromField]:
    """Who says what. Names tell those of one role apart: there are none in the model's format, so that each goes before
    its text where a role has several, and says nothing where it has one. A tool's goes with its call."""
    names = defaultdict(set)
    for each in messages:
        names[each.role].add(each.name)
    said = []
    for at, each in enumerate(messages):
        is_told = each.name and len(names[each.role]) > 1 and each.role != "tool"
        content = f"{each.name}: {each.content}" if is_told else each.content
        role = markup.RESULT if each.role == "tool" else each.role
        said.append((f"messages.{at}", Message(role, content, tuple(map(called, each.tool_calls)))))
    return said


def called(call: EarlierCall) -> str:
    """A call as the model writes it, however the client has its arguments."""
    return markup.call(call.function.name, json.loads(call.function.arguments or "{}"))
