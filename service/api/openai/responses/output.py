"""The items of an answer, a message and perhaps a call, as they grow in a stream."""

from typing import TypedDict

from service.api.openai.ids import new_id
from service.api.openai.responses.events import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    ItemEvent,
    PartEvent,
    StreamEvent,
    TextDeltaEvent,
    TextDoneEvent,
)
from service.api.openai.responses.response import OutputCall, OutputMessage, OutputText, Status
from service.chat.logprobs import TokenReport

Item = OutputMessage | OutputCall


class Where(TypedDict):
    """Of which item an event is."""

    item_id: str
    output_index: int


class Output:
    """The items of one answer. Each change gives the events by which a stream tells it."""

    def __init__(self) -> None:
        self.items: list[Item] = []  # that are whole
        self._open: OpenMessage | OpenCall | None = None

    def text(self, text: str, tokens: list[TokenReport]) -> list[StreamEvent]:
        """The answer says more."""
        begins, message = self._message()
        return [*begins, *message.goes_on(text, tokens)]

    def call(self, name: str, arguments: str) -> list[StreamEvent]:
        """It goes on with a call, or that does, which then has no `name`."""
        if isinstance(self._open, OpenCall):
            return self._open.goes_on(arguments)
        ends = self._closes("completed")
        call = self._open = OpenCall(len(self.items), name)
        return [*ends, *call.begins(), *call.goes_on(arguments)]

    def ends(self, status: Status, tokens: list[TokenReport]) -> list[StreamEvent]:
        """It is whole, or cut. `tokens`: those behind its last text. Without any other item it is an empty message."""
        begins: list[StreamEvent] = []
        if not isinstance(self._open, OpenCall):
            begins, message = self._message()
            message.add("", tokens)
        return [*begins, *self._closes(status)]

    def _message(self) -> tuple[list[StreamEvent], "OpenMessage"]:
        if isinstance(self._open, OpenMessage):
            return [], self._open
        message = self._open = OpenMessage(len(self.items))
        return message.begins(), message

    def _closes(self, status: Status) -> list[StreamEvent]:
        if self._open is None:
            return []
        closed, self._open = self._open, None
        self.items.append(closed.item(status))
        return closed.ends(self.items[-1])


class OpenMessage:
    """What an answer says, so far; `index` is its place in the output."""

    def __init__(self, index: int) -> None:
        self._id = new_id("msg")
        self._index = index
        self._texts: list[str] = []
        self._tokens: list[TokenReport] = []

    def begins(self) -> list[StreamEvent]:
        return [
            ItemEvent(type="response.output_item.added", output_index=self._index, item=self._item("in_progress", [])),
            PartEvent(type="response.content_part.added", **self._where, part=OutputText(text="")),
        ]

    def goes_on(self, text: str, tokens: list[TokenReport]) -> list[StreamEvent]:
        self.add(text, tokens)
        return [TextDeltaEvent.model_construct(**self._where, delta=text, logprobs=tokens)]

    def add(self, text: str, tokens: list[TokenReport]) -> None:
        self._texts.append(text)
        self._tokens += tokens

    def ends(self, whole: Item) -> list[StreamEvent]:
        part = self._part()
        return [
            TextDoneEvent.model_construct(**self._where, text=part.text, logprobs=self._tokens),
            PartEvent(type="response.content_part.done", **self._where, part=part),
            ItemEvent(type="response.output_item.done", output_index=self._index, item=whole),
        ]

    def item(self, status: Status) -> OutputMessage:
        return self._item(status, [self._part()])

    def _item(self, status: Status, content: list[OutputText]) -> OutputMessage:
        return OutputMessage(id=self._id, status=status, content=content)

    def _part(self) -> OutputText:
        # As they are: to look at each report again would take longer than to make them.
        return OutputText.model_construct(text="".join(self._texts), logprobs=self._tokens)

    @property
    def _where(self) -> Where:
        return {"item_id": self._id, "output_index": self._index}


class OpenCall:
    """An answer's call of the tool `name`, so far; `index` is its place in the output."""

    def __init__(self, index: int, name: str) -> None:
        self._id, self._call_id = new_id("fc"), new_id("call")
        self._index = index
        self._name = name
        self._arguments: list[str] = []

    def begins(self) -> list[StreamEvent]:
        return [ItemEvent(type="response.output_item.added", output_index=self._index, item=self.item("in_progress"))]

    def goes_on(self, arguments: str) -> list[StreamEvent]:
        self._arguments.append(arguments)
        return [ArgumentsDeltaEvent(**self._where, delta=arguments)] if arguments else []

    def ends(self, whole: Item) -> list[StreamEvent]:
        return [
            ArgumentsDoneEvent(**self._where, name=self._name, arguments="".join(self._arguments)),
            ItemEvent(type="response.output_item.done", output_index=self._index, item=whole),
        ]

    def item(self, status: Status) -> OutputCall:
        return OutputCall(
            id=self._id, status=status, call_id=self._call_id, name=self._name, arguments="".join(self._arguments)
        )

    @property
    def _where(self) -> Where:
        return {"item_id": self._id, "output_index": self._index}
