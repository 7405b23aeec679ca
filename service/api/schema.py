"""The wire models of our own route. Unknown fields are refused, never ignored; every bound is stated once, here."""

import re
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.api.sampling import RepetitionPenalty, Seed, Temperature, TopK, TopP

DEFAULT_SYSTEM = "You are a helpful assistant."
DEFAULT_NEW_TOKENS = 1024
MAX_TEXT_CHARACTERS = 400_000
"""More than 32,768 tokens of natural language ever hold; what is longer is refused without tokenizing it."""

MAX_STOP_CHARACTERS = 1000
MAX_TURNS = 1000

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _printable(text: str) -> str:
    found = _CONTROL.search(text)
    if found:
        raise ValueError(
            f"character {found.start() + 1} is the control character U+{ord(found.group()):04X}; "
            "of those only tab, line feed and carriage return are text"
        )
    return text


Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS), AfterValidator(_printable)]
NonEmptyText = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS), AfterValidator(_printable)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS), AfterValidator(_printable)]
Stops = Annotated[list[Stop], Field(max_length=16)]
NewTokens = Annotated[int, Field(ge=1, le=32_768)]


class Strict(BaseModel):
    """What a client sends. A field that is not declared is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _first_of_many(cls, value: Any) -> Any:
        """Of more fields than are declared, keep those and the first unknown one: pydantic would spend seconds, in
        which nobody else is served, on a complaint about each of the others."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields):
            return value
        unknown = next(name for name in value if name not in cls.model_fields)
        return {name: value[name] for name in (*cls.model_fields, unknown) if name in value}


class Turn(Strict):
    """One earlier message of the conversation."""

    role: Literal["user", "assistant"]
    content: Text


class HasContent(Protocol):
    """A message, of whichever form."""

    @property
    def content(self) -> str: ...


Message = TypeVar("Message", bound=HasContent)


def bounded(messages: list[Message]) -> list[Message]:
    """A validator: the messages, if they are not too long together."""
    characters = sum(len(message.content) for message in messages)
    if characters > MAX_TEXT_CHARACTERS:
        raise ValueError(
            f"its messages have {characters} characters together; at most {MAX_TEXT_CHARACTERS} are read. "
            "Leave out the oldest ones."
        )
    return messages


History = Annotated[list[Turn], Field(max_length=MAX_TURNS), AfterValidator(bounded)]


class ChatRequest(Strict):
    """A question, and how to answer it. Only `prompt` is required; the defaults are the model card's."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "你好"}, {"prompt": "Count to five.", "stream": True}]},
    )

    prompt: NonEmptyText = Field(description="What the user says.")
    system: Text | None = Field(None, description=f"System prompt; unset: {DEFAULT_SYSTEM!r}. Empty: none.")
    history: History = Field([], description="Earlier turns, oldest first.")
    thinking: bool = Field(False, description="Think step by step: InternLM3's deep-thinking system prompt.")
    stream: bool = Field(False, description="Answer as server-sent events, piece by piece.")
    max_new_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    temperature: Temperature = 1.0
    top_k: TopK = 40
    top_p: TopP = 0.8
    repetition_penalty: RepetitionPenalty = 1.005
    seed: Seed | None = Field(None, description="The same seed and settings give the same answer.")
    stop: Stops = Field([], description="The answer ends before the first of these texts.")


class Usage(BaseModel):
    """Tokens of prompt and answer; `cached_tokens` of the prompt were found in the prefix cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class ChatResponse(BaseModel):
    """The answer. `response`, `status` and `time` are the original contract; the rest came later and may grow."""

    response: str
    status: Literal[200] = 200
    time: str = Field(description="Local time, YYYY-MM-DD HH:MM:SS.", examples=["2026-01-31 12:00:00"])
    id: str
    finish_reason: Literal["stop", "length"]
    usage: Usage


class Delta(BaseModel):
    """A piece of a streamed answer."""

    id: str
    delta: str


class FinalDelta(ChatResponse):
    """The last piece of a streamed answer: what the unstreamed answer would have been."""

    delta: Literal[""] = ""


class Problem(BaseModel):
    """Why a request is not answered (RFC 9457). `code` is stable, `field` names what of the request is at fault."""

    type: Literal["about:blank"] = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None


class Health(BaseModel):
    """Whether the model answers. `message`, `status` and `timestamp` are the original contract."""

    message: str
    status: Literal["healthy", "starting", "loading", "draining", "failed"]
    timestamp: str
    reason: str = ""
    model: str = ""
    revision: str | None = None
    manifest: str | None = Field(None, description="Digest of the model directory's manifest: which weights answer.")
    versions: dict[str, str] = {}
    degraded: list[str] = Field([], description="Fast paths that were replaced by slower ones on this GPU.")
