"""The wire models of an answer to a client of OpenAI's API: one chat completion, or the chunks of one."""

from typing import Literal

from pydantic import BaseModel

from service.api.openai.named import Named
from service.api.openai.usage import CompletionUsage
from service.chat.logprobs import TokenReport

FinishReason = Literal["stop", "length", "tool_calls"]


class CalledFunction(BaseModel):
    """Which tool is to be called, and with what: the text of a JSON object, unless the answer was cut."""

    name: str
    arguments: str


class AnsweredCall(BaseModel):
    """The call that the client is asked to make; its result goes into a message with this id."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The answer itself."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class CallingMessage(BaseModel):
    """An answer with a call of a tool; `content` is null where it says nothing else."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall]


class ChoiceLogprobs(BaseModel):
    """For a client that asked for logprobs: the tokens of the answer, or of a piece of it, but the one that ends it."""

    content: list[TokenReport]
    refusal: None = None


class Choice(BaseModel):
    """One of the answers, as many as `n` asked for."""

    index: int
    message: AnswerMessage | CallingMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Named):
    """The whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: CompletionUsage


class FirstDelta(BaseModel):
    """The first piece of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Arguments(BaseModel):
    """More of a call's arguments."""

    arguments: str


class CallBegins(AnsweredCall):
    """The first piece of a call, which stands alone: there is one in an answer at most."""

    index: Literal[0] = 0


class CallGoesOn(BaseModel):
    """A further piece of a call."""

    index: Literal[0] = 0
    function: Arguments


class FirstCallDelta(BaseModel):
    """The first piece of an answer that is a call and nothing else."""

    role: Literal["assistant"] = "assistant"
    content: None = None
    tool_calls: list[CallBegins]


class CallPiece(BaseModel):
    """A piece of a call, behind the answer's text."""

    tool_calls: list[CallBegins | CallGoesOn]


class TextPiece(BaseModel):
    """A further piece of an answer."""

    content: str


class NoDelta(BaseModel):
    """No more text."""


class ChunkChoice(BaseModel):
    """A piece of one answer; the last one tells how that ended."""

    index: int
    delta: FirstDelta | TextPiece | FirstCallDelta | CallPiece | NoDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class Chunk(Named):
    """An event of a streamed answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class CountedChunk(Chunk):
    """The same for a client that asked for usage: that of all answers comes in an event of its own at the end; before
    that there is none, or in every event that of its answer so far."""

    usage: CompletionUsage | None = None
