"""The messages of a chat completion, as its clients write them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, FailFast, Field

from service.api.fields import MAX_TURNS, Label, Strict, Text
from service.api.openai.chat_completions import unserved
from service.api.openai.content import AS_SYSTEM, as_answered, as_it_may_be_sent, in_parts, joined
from service.api.openai.conversation import EarlierCall, ResultOf, Turn
from service.api.openai.tools import MAX_TOOLS, Name, call_characters
from service.api.openai.unserved import without
from service.errors import InvalidRequest

Content = Annotated[Text, joined("text"), in_parts("text")]
Role = Annotated[Literal["system", "developer", "user", "assistant", "tool"], AS_SYSTEM]


class MadeFunction(Strict):
    """Which tool was called, and with what: the text of a JSON object, unless the call was cut."""

    name: Name
    arguments: Text


class MadeCall(Strict):
    """A call in an earlier answer. Its place among the answer's calls, `index`, is that in their list."""

    id: Label
    type: Literal["function"] = "function"
    function: MadeFunction
    index: int | None = None


def _without_content(schema: dict[str, Any]) -> None:
    """Who calls a tool need not say anything."""
    schema["required"].remove("content")


class ChatMessage(Strict):
    """One message of the conversation."""

    model_config = ConfigDict(json_schema_extra=_without_content)

    role: Role
    content: Content
    name: Label = ""
    tool_calls: Annotated[list[MadeCall], Field(max_length=MAX_TOOLS), FailFast()] = Field(
        [], description="Of an assistant's message, which then need not have a content."
    )
    tool_call_id: Label = Field("", description="Of a tool's message: which call it answers.")

    @property
    def characters(self) -> int:
        calls = (call_characters(call.function.name, call.function.arguments) for call in self.tool_calls)
        return len(self.content) + sum(calls)


def cleaned_messages(messages: list[Any]) -> list[Any]:
    """Messages that nobody has checked yet, without what asks for nothing. Raises InvalidRequest for what is not
    served, and for more calls than there may be messages."""
    _require_few_calls(messages)
    return [without(unserved.OF_MESSAGE, _sent_back(message), f"messages.{at}.") for at, message in enumerate(messages)]


def _sent_back(message: Any) -> Any:
    """An assistant's message, or a tool's, without what is no text."""
    role = message.get("role") if isinstance(message, dict) else None
    if role == "tool":
        content = as_it_may_be_sent(message.get("content"))
        return message | {"content": "" if content is None else content}
    return _answer(message) if role == "assistant" else message


def _answer(message: dict[str, Any]) -> dict[str, Any]:
    """An assistant's message without its reasoning; who calls a tool need not say anything."""
    said: dict[str, Any] = _unlabelled(message, (*unserved.REASONING, *unserved.ANSWER_LABELS))
    said["content"] = as_answered(said.get("content"), "text")
    if isinstance(said.get("refusal"), str) and not said.get("content"):
        said["content"] = as_it_may_be_sent(said.pop("refusal"))  # it is what the assistant said
    if said.get("tool_calls") and said.get("content") is None:
        said["content"] = ""
    if isinstance(said.get("tool_calls"), list):
        said["tool_calls"] = list(map(_call_alone, said["tool_calls"]))
    return said


def _call_alone(call: Any) -> Any:
    alone = _unlabelled(call, unserved.CALL_LABELS)
    if isinstance(alone, dict) and "function" in alone:
        alone["function"] = _unlabelled(alone["function"], unserved.FUNCTION_LABELS)
    return alone


def _unlabelled(value: Any, labels: tuple[str, ...]) -> Any:
    return {name: each for name, each in value.items() if name not in labels} if isinstance(value, dict) else value


def _require_few_calls(messages: list[Any]) -> None:
    calls = [message.get("tool_calls") for message in messages if isinstance(message, dict)]
    count = sum(len(each) for each in calls if isinstance(each, list))
    if count > MAX_TURNS:
        raise InvalidRequest(
            f"its messages have {count} calls of tools; at most {MAX_TURNS} are read. Leave out the oldest messages.",
            field="messages",
        )


def turns(messages: Sequence[ChatMessage]) -> list[Turn]:
    """The conversation. Raises InvalidRequest for calls, and for results, in messages that can't have any."""
    return [_turn(f"messages.{at}", message) for at, message in enumerate(messages)]


def _turn(field: str, message: ChatMessage) -> Turn:
    if message.tool_calls and message.role != "assistant":
        raise InvalidRequest("only an assistant's message has calls", field=f"{field}.tool_calls")
    if message.tool_call_id and message.role != "tool":
        raise InvalidRequest("only a tool's message answers a call", field=f"{field}.tool_call_id")
    return Turn(
        field,
        message.role,
        message.content,
        name=message.name,
        calls=tuple(_call(call, f"{field}.tool_calls") for call in message.tool_calls),
        result_of=ResultOf(message.tool_call_id, f"{field}.tool_call_id") if message.role == "tool" else None,
    )


def _call(call: MadeCall, field: str) -> EarlierCall:
    return EarlierCall(call.id, call.function.name, call.function.arguments, field)
