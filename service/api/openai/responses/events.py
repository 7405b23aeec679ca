"""The wire models of a streamed response: its events, each under its name and numbered.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from typing import Literal

from service.api.openai.responses.response import ModelResponse, OutputCall, OutputMessage, OutputText
from service.api.sse import NamedEvent
from service.chat.logprobs import TokenReport


class StreamEvent(NamedEvent):
    """An event; `sequence_number`: which one of its stream, from 0."""

    sequence_number: int = -1  # until it is sent


class ResponseEvent(StreamEvent):
    """The response begins, or ends. The last event of a stream is one of the latter three."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ModelResponse


class ItemEvent(StreamEvent):
    """An item of the output begins, or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputMessage | OutputCall


class OfItem(StreamEvent):
    """An event of one item."""

    item_id: str
    output_index: int


class OfText(OfItem):
    """An event of a message's one text."""

    content_index: Literal[0] = 0


class PartEvent(OfText):
    """It begins, or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText


class TextDeltaEvent(OfText):
    """More of it."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TokenReport]


class TextDoneEvent(OfText):
    """All of it."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TokenReport]


class ArgumentsDeltaEvent(OfItem):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDoneEvent(OfItem):
    """All of them."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str
