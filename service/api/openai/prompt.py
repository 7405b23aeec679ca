"""What the model gets to read of a request: its conversation, and of the tools that come with it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from service.api.openai.conversation import FromField, Turn, conversation
from service.api.openai.offering import offered, require_sayable
from service.api.openai.tool_choice import ToolChoice
from service.api.openai.tools import Function
from service.chat.templates import Message
from service.chat.tools.offer import Tool
from service.errors import MessageRefused


class Prompt(NamedTuple):
    """`from_fields`: the messages, each with the field of the body that it comes from. `tools`: those that the model is
    told of in one of them."""

    from_fields: list[FromField]
    tools: list[Tool]

    @property
    def messages(self) -> list[Message]:
        return [message for _, message in self.from_fields]

    @contextmanager
    def blamed(self, all_of_it: str) -> Iterator[None]:
        """A MessageRefused inside names the field that the message comes from; `all_of_it`: that of them all."""
        try:
            yield
        except MessageRefused as refusal:
            refusal.field = all_of_it if refusal.index is None else self.from_fields[refusal.index][0]
            raise


def prompt_of(
    turns: Sequence[Turn],
    functions: Sequence[tuple[str, Function]],
    choice: ToolChoice,
    *,
    thinking: bool,
    calls_tools: bool,
    ignores_tools: bool,
) -> Prompt:
    """`functions`: each with its field of the body. Raises InvalidRequest for what the model can't be told, or asked
    for: see `offering` and `conversation`."""
    require_sayable(turns, are_called=calls_tools)
    tools = offered(functions, choice, are_called=calls_tools, are_ignored=ignores_tools)
    return Prompt(conversation(turns, tools, thinking=thinking), tools)
