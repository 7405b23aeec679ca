"""The wire models of our own routes: what a chat is asked with, and everything that is answered."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from service.api.fields import MAX_TURNS, NewTokens, NonEmptyText, StopOrStops, Strict, Text, Thoughtful, bounded
from service.api.response_format import Formatted
from service.chat.printable import without_control

DEFAULT_SYSTEM = "You are a helpful assistant."
DEFAULT_NEW_TOKENS = 1024


class Turn(Strict):
    """One earlier message of the conversation."""

    role: Literal["user", "assistant"]
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _sent_back(cls, turn: Any) -> Any:
        """An answer as it may be sent: it may hold what is no text."""
        is_answer = isinstance(turn, dict) and turn.get("role") == "assistant" and isinstance(turn.get("content"), str)
        return turn | {"content": without_control(turn["content"])} if is_answer else turn

    @property
    def characters(self) -> int:
        return len(self.content)


History = Annotated[list[Turn], Field(max_length=MAX_TURNS), AfterValidator(bounded)]


class ChatRequest(Formatted, Thoughtful):
    """A question, and how to answer it. Only `prompt` is required; the defaults are the model card's."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "你好"}, {"prompt": "Count to five.", "stream": True}]},
    )

    prompt: NonEmptyText = Field(description="What the user says.")
    system: Text | None = Field(None, description=f"System prompt; unset: {DEFAULT_SYSTEM!r}. Empty: none.")
    history: History = Field([], description="Earlier turns, oldest first.")
    max_new_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    stop: StopOrStops = Field([], description="The answer ends before the first of these texts.")

    @model_validator(mode="before")
    @classmethod
    def _set(cls, value: Any) -> Any:
        """Without nulls, which mean "unset"."""
        is_object = isinstance(value, dict)
        return {name: each for name, each in value.items() if each is not None} if is_object else value


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
    quantization: str | None = Field(
        None, description="What the weights' matrices were rounded to: int8, or none; null until they are loaded."
    )
    degraded: list[str] = Field([], description="Fast paths that were replaced by slower ones on this GPU.")
