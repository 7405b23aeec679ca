"""What a client of OpenAI's API may send: bounds and defaults are those of our own route where both have a field."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from service.api.openai import unserved
from service.api.sampling import RepetitionPenalty, Seed, Temperature, TopK, TopP
from service.api.schema import MAX_TURNS, NewTokens, Stops, Strict, Text, bounded

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""

TEXT_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}


def _joined(content: Any) -> Any:
    """Parts of text as one text, a line each."""
    if not isinstance(content, list):
        return content
    for at, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f'part {at} is not {{"type": "text", "text": "…"}}, and only text is understood')
    return "\n".join(part["text"] for part in content)


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Content = Annotated[
    Text,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": TEXT_PART}]}),
]


class ChatMessage(Strict):
    """One message of the conversation. A developer's is a system's by another name."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content


class StreamOptions(Strict):
    """What a stream has besides the answer."""

    include_usage: bool = False


class CompletionRequest(Strict):
    """A conversation to answer. What else OpenAI's API has is refused by name, unless its value changes nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "你好"}]}]})

    model: str | None = Field(None, description="The model that GET /v1/models names; unset: the same.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(bounded)] = Field(
        description="The conversation, oldest first. No system prompt is added."
    )
    thinking: bool = Field(False, description="Think step by step: InternLM3's deep-thinking system prompt.")
    stream: bool = Field(False, description="Answer as server-sent events, piece by piece.")
    stream_options: StreamOptions = Field(
        StreamOptions(), description="With include_usage, a last event of the stream counts tokens."
    )
    max_completion_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    max_tokens: NewTokens | None = Field(None, description="The same by its older name.")
    temperature: Temperature = 1.0
    top_k: TopK = 40
    top_p: TopP = 0.8
    repetition_penalty: RepetitionPenalty = 1.005
    seed: Seed | None = Field(None, description="The same seed and settings give the same answer.")
    stop: Annotated[Stops, BeforeValidator(_listed)] = Field(
        [], description="The answer ends before the first of these."
    )
    user: Annotated[str, Field(max_length=256)] | None = Field(
        None, description="Whom you ask for; the service's log names it with the request."
    )

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        value = unserved.without(unserved.OF_REQUEST, value)
        messages = value.get("messages") if isinstance(value, dict) else None
        if isinstance(messages, list) and len(messages) <= MAX_TURNS:  # of more, none is looked at
            value["messages"] = [
                unserved.without(unserved.OF_MESSAGE, message, f"messages.{at}.") for at, message in enumerate(messages)
            ]
        return value

    @property
    def limit_name(self) -> str:
        """By which name the client set the most tokens of the answer."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
