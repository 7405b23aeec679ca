"""The items of a response's input: messages, calls of tools and what they gave, as clients send them and send back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.api.body import tag
from service.api.fields import Label, Strict, Text
from service.api.openai.content import AS_SYSTEM, as_answered, as_it_may_be_sent, in_parts, joined
from service.api.openai.conversation import EarlierCall, ResultOf, Turn
from service.api.openai.responses import unserved
from service.api.openai.tools import Name, call_characters
from service.api.openai.unserved import without
from service.errors import InvalidRequest

PARTS = ("input_text", "output_text")
Content = Annotated[Text, joined(*PARTS), in_parts(*PARTS)]
Role = Annotated[Literal["system", "developer", "user", "assistant"], AS_SYSTEM]


class InputMessage(Strict):
    """What somebody said."""

    type: Literal["message"] = "message"
    role: Role
    content: Content

    @property
    def characters(self) -> int:
        return len(self.content)


class InputCall(Strict):
    """A call of a tool in an earlier answer."""

    type: Literal["function_call"]
    call_id: Label
    name: Name
    arguments: Text

    @property
    def characters(self) -> int:
        return call_characters(self.name, self.arguments)


class CallOutput(Strict):
    """What the tool that an earlier call was of gave."""

    type: Literal["function_call_output"]
    call_id: Label
    output: Content
    name: Label = Field("", description="Of the tool; its call has it, too.")

    @property
    def characters(self) -> int:
        return len(self.output)


class Reasoning(Strict):
    """What some model thought, which is no part of the conversation."""

    type: Literal["reasoning"]

    @property
    def characters(self) -> int:
        return 0


KINDS = ("message", "function_call", "function_call_output", "reasoning")


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", "message")
    return tag(kind)


Item = Annotated[
    Annotated[InputMessage, Tag(tag("message"))]
    | Annotated[InputCall, Tag(tag("function_call"))]
    | Annotated[CallOutput, Tag(tag("function_call_output"))]
    | Annotated[Reasoning, Tag(tag("reasoning"))],
    Discriminator(_kind),
]


def cleaned_items(items: list[Any]) -> list[Any]:
    """Items that nobody has checked yet, without what asks for nothing. Raises InvalidRequest for what is not
    served."""
    return [_cleaned(item, f"input.{at}") for at, item in enumerate(items)]


def _cleaned(item: Any, field: str) -> Any:
    if not isinstance(item, dict):
        return item
    kind = "message" if item.get("type") is None else item["type"]
    if kind == "item_reference":
        raise InvalidRequest(
            "it refers to what a server would have kept, and nothing is kept here; send the item itself, which clients "
            "do that are told to have nothing stored (store false; in the AI SDK providerOptions.openai has it)",
            field=field,
        )
    if kind not in KINDS:
        raise InvalidRequest(f"of what an input may have, {', '.join(KINDS)} are read here", field=f"{field}.type")
    if kind == "reasoning":
        return {"type": kind}
    unlabelled = {name: value for name, value in item.items() if name not in unserved.ITEM_LABELS}
    if kind == "function_call_output":
        unlabelled["output"] = as_it_may_be_sent(item.get("output"))
    elif item.get("role") == "assistant":
        unlabelled["content"] = as_answered(item.get("content"), "output_text")
    return without(unserved.OF_ITEM, unlabelled, f"{field}.")


def turns(instructions: str | None, items: Sequence[Item]) -> list[Turn]:
    """The conversation. Calls belong to what the assistant says before them, if it does. Raises InvalidRequest where
    nobody says anything."""
    said = [Turn("instructions", "system", instructions)] if instructions else []
    for at, item in enumerate(items):
        field = f"input.{at}"
        if isinstance(item, InputMessage):
            said.append(Turn(field, item.role, item.content))
        elif isinstance(item, CallOutput):
            said.append(Turn(field, "tool", item.output, result_of=ResultOf(item.call_id, f"{field}.call_id")))
        elif isinstance(item, InputCall):
            before = said.pop() if said and said[-1].role == "assistant" else Turn(field, "assistant", "")
            call = EarlierCall(item.call_id, item.name, item.arguments, field)
            said.append(replace(before, calls=(*before.calls, call)))
    if not said:
        raise InvalidRequest("it has reasoning and nothing else; send what was said", field="input")
    return said
