"""What a client of OpenAI's API may send: bounds and defaults are those of our own route where both have a field."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from service.api.fields import MAX_TURNS, Label, NewTokens, Stops, Strict, Text, bounded
from service.api.openai import unserved
from service.api.openai.tools import MAX_TOOLS, Calls, Choice, ToolChoice, Tools
from service.api.response_format import Formatted
from service.engine.defaults import MOST_LOGPROBS
from service.errors import InvalidRequest

DEFAULT_NEW_TOKENS = 4096
"""Clients of this API seldom set a limit and seldom show that one was reached, so it is high; and not all that the
context holds, since every token that an answer may have is reserved in the KV cache before it begins."""

MOST_CHOICES = 16
"""Each takes a place among the requests that run at once."""

LOGPROBS_IN_ONE_PIECE = 200_000
"""Most of an answer that is not streamed: some 15 MB, and a tenth of a second in which nobody else is
served."""

TEXT_PART = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}


def _joined(content: Any) -> Any:
    """Parts of text as one text, a line each."""
    if not isinstance(content, list):
        return content
    parts = [unserved.without({}, part) for part in content]
    for at, part in enumerate(parts):
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text or len(part) > 2:
            raise ValueError(f'part {at} is not {{"type": "text", "text": "…"}}, and nothing else is understood')
    return "\n".join(part["text"] for part in parts)


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Content = Annotated[
    Text,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": TEXT_PART}]}),
]


def _of_the_models_format(role: str) -> str:
    """A developer's message is a system's by another name."""
    return "system" if role == "developer" else role


Role = Annotated[Literal["system", "developer", "user", "assistant", "tool"], AfterValidator(_of_the_models_format)]


def _of_an_assistant(message: Any) -> Any:
    """Without its reasoning; who calls a tool need not say anything."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return message
    said = {name: each for name, each in message.items() if name not in unserved.REASONING}
    if said.get("tool_calls") and said.get("content") is None:
        said["content"] = ""
    return said


def _plain(tool: Any) -> Any:
    """Without nulls and hints."""
    tool = unserved.without({}, tool)
    if isinstance(tool, dict) and "function" in tool:
        tool["function"] = unserved.without({}, tool["function"])
    return tool


def _require_few_calls(messages: list[Any]) -> None:
    """Raises InvalidRequest for more calls than there may be messages."""
    calls = [message.get("tool_calls") for message in messages if isinstance(message, dict)]
    count = sum(len(each) for each in calls if isinstance(each, list))
    if count > MAX_TURNS:
        raise InvalidRequest(
            f"its messages have {count} calls of tools; at most {MAX_TURNS} are read. Leave out the oldest messages.",
            field="messages",
        )


def _read_as_ours(body: dict[str, Any]) -> None:
    """What vLLM's server calls otherwise: -1 for all tokens, and the switch that the templates of other models have."""
    if body.get("top_k") == -1:
        body["top_k"] = 0
    options = unserved.without({}, body.get("chat_template_kwargs"))
    if not isinstance(options, dict) or options.keys() - {"enable_thinking"}:
        return  # there is none, or what is refused by name
    del body["chat_template_kwargs"]
    if options and body.setdefault("thinking", options["enable_thinking"]) != options["enable_thinking"]:
        raise InvalidRequest(
            "chat_template_kwargs.enable_thinking is another name of thinking; send one of them",
            field="chat_template_kwargs.enable_thinking",
        )


def _without_content(schema: dict[str, Any]) -> None:
    """Who calls a tool need not say anything."""
    schema["required"].remove("content")


class ChatMessage(Strict):
    """One message of the conversation."""

    model_config = ConfigDict(json_schema_extra=_without_content)

    role: Role
    content: Content
    name: Label = ""
    tool_calls: Calls = Field([], description="Of an assistant's message, which then need not have a content.")
    tool_call_id: Label = Field("", description="Of a tool's message: which call it answers.")

    @property
    def characters(self) -> int:
        return len(self.content) + sum(call.characters for call in self.tool_calls)


class StreamOptions(Strict):
    """What a stream has besides the answer: with `include_usage` an event at its end that counts tokens, and with
    `continuous_usage_stats` as well the count so far in every event."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class CompletionRequest(Formatted):
    """A conversation to answer. What else OpenAI's API has is refused by name, unless its value changes nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "你好"}]}]})

    model: str | None = Field(None, description="The model that GET /v1/models names; unset: the same.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(bounded)] = Field(
        description="The conversation, oldest first. No system prompt is added."
    )
    stream_options: StreamOptions = Field(StreamOptions(), description="What a stream has besides the answer.")
    max_completion_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    max_tokens: NewTokens | None = Field(None, description="The same by its older name.")
    stop: Annotated[Stops, BeforeValidator(_listed)] = Field(
        [], description="The answer ends before the first of these."
    )
    ignore_eos: bool = Field(False, description="Go on past the answer's end, up to the limit: for benchmarks.")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="So many answers, each with a seed of its own.")
    logprobs: bool = Field(False, description="Tell the log-probability of each token of the answer.")
    top_logprobs: int = Field(
        0, ge=0, le=MOST_LOGPROBS, description="With logprobs: so many of the likeliest tokens in each place, too."
    )
    tools: Tools = Field([], description="Functions of yours that the model may ask for, one in each answer.")
    tool_choice: Choice = Field(
        default_factory=lambda: ToolChoice("auto"),
        description="auto: it may call one; required, or a name: it must; none: it must not.",
        json_schema_extra={"default": "auto"},
    )
    user: Label | None = Field(None, description="For whom you ask; the service's log names it with the request.")
    safety_identifier: Label | None = Field(None, description="The same by its newer name.")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        value = unserved.without(unserved.OF_REQUEST | unserved.OF_OTHER_SERVERS, value)
        if not isinstance(value, dict):
            return value
        _read_as_ours(value)
        if "stream_options" in value:
            options = unserved.without(unserved.OF_STREAM_OPTIONS, value["stream_options"], "stream_options.")
            value["stream_options"] = options
        tools = value.get("tools")
        if isinstance(tools, list) and len(tools) <= MAX_TOOLS:
            value["tools"] = [_plain(tool) for tool in tools]
        messages = value.get("messages")
        if isinstance(messages, list) and len(messages) <= MAX_TURNS:  # of more, none is looked at
            _require_few_calls(messages)
            value["messages"] = [
                unserved.without(unserved.OF_MESSAGE, _of_an_assistant(message), f"messages.{at}.")
                for at, message in enumerate(messages)
            ]
        return value

    @property
    def limit_name(self) -> str:
        """By which name the client set the most tokens of the answer."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
