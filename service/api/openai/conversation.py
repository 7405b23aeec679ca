"""The conversation of a request as the model's own: each message beside the field of the body that it comes from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from service.api.openai.tools import called_with
from service.chat.templates import Message
from service.chat.thinking import THINKING_SYSTEM_PROMPT
from service.chat.tools import markup
from service.chat.tools.offer import Tool
from service.errors import InvalidRequest

FromField = tuple[str, Message]


class EarlierCall(NamedTuple):
    """A call in an earlier answer; `arguments`: as it had them. `field`: of the body, where it stands."""

    id: str
    name: str
    arguments: str
    field: str


class ResultOf(NamedTuple):
    """The call that a tool's message answers. `field`: of the body, where that is said."""

    call_id: str
    field: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as every route has it. `field`: of the body, where it comes from. `name`: of whoever says it. `calls`:
    of tools, an assistant's; `result_of`: one of them, in a message of the role "tool"."""

    field: str
    role: str
    content: str
    name: str = ""
    calls: tuple[EarlierCall, ...] = ()
    result_of: ResultOf | None = None


def conversation(turns: Sequence[Turn], tools: Sequence[Tool], *, thinking: bool) -> list[FromField]:
    """What the model is asked, and told of `tools`. Raises InvalidRequest for a system prompt beside the one that
    thinking is, and for results of calls that nobody made."""
    require_calls(turns)
    messages = spoken(turns)
    if thinking:
        require_no_system(messages)
        messages = [("thinking", Message("system", THINKING_SYSTEM_PROMPT)), *messages]
    if tools:
        behind = int(messages[0][1].role == "system")
        messages.insert(behind, ("tools", Message(markup.TOOLS, markup.described(tools))))
    return messages


def require_no_system(messages: Sequence[FromField]) -> None:
    for name, message in messages:
        if message.role == "system":
            raise InvalidRequest(
                f"thinking is a system prompt of its own; send either thinking or {name}", field="thinking"
            )


def require_calls(turns: Sequence[Turn]) -> None:
    """Raises InvalidRequest unless each result is that of an earlier call."""
    made: set[str] = set()
    for turn in turns:
        if turn.result_of and turn.result_of.call_id not in made:
            field = turn.result_of.field
            raise InvalidRequest(
                f"{field.rpartition('.')[2]} must be the id of a call that came before, whose result this is",
                field=field,
            )
        made |= {call.id for call in turn.calls}


def spoken(turns: Sequence[Turn]) -> list[FromField]:
    """Who says what. Names tell those of one role apart: there are none in the model's format, so that each goes before
    its text where a role has several, and says nothing where it has one. A tool's goes with its call."""
    names = defaultdict(set)
    for each in turns:
        names[each.role].add(each.name)
    said = []
    for each in turns:
        is_told = each.name and len(names[each.role]) > 1 and each.role != "tool"
        content = f"{each.name}: {each.content}" if is_told else each.content
        role = markup.RESULT if each.role == "tool" else each.role
        said.append((each.field, Message(role, content, tuple(map(called, each.calls)))))
    return said


def called(call: EarlierCall) -> str:
    """A call as the model writes it, however the client has its arguments."""
    return markup.call(call.name, called_with(call.arguments))
