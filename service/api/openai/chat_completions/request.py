"""What a client of OpenAI's API may send: bounds and defaults are those of our own route where both have a field."""

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from service.api.fields import MAX_TURNS, Label, Metadata, NewTokens, Thoughtful, bounded
from service.api.openai.chat_completions import unserved
from service.api.openai.chat_completions.messages import ChatMessage, cleaned_messages
from service.api.openai.chat_completions.tools import Choice, Tools, cleaned_tools
from service.api.openai.completing import Completing
from service.api.openai.limits import DEFAULT_NEW_TOKENS
from service.api.openai.other_servers import as_ours
from service.api.openai.tool_choice import AUTO
from service.api.openai.tools import MAX_TOOLS
from service.api.openai.unserved import without
from service.engine.defaults import MOST_LOGPROBS
from service.errors import InvalidRequest


def _thinking_as_ours(body: dict[str, Any]) -> None:
    """The switch that the templates of other models have, and vLLM's server hands to them."""
    options = without({}, body.get("chat_template_kwargs"))
    if not isinstance(options, dict) or options.keys() - {"enable_thinking"}:
        return  # there is none, or what is refused by name
    del body["chat_template_kwargs"]
    if options and body.setdefault("thinking", options["enable_thinking"]) != options["enable_thinking"]:
        raise InvalidRequest(
            "chat_template_kwargs.enable_thinking is another name of thinking; send one of them",
            field="chat_template_kwargs.enable_thinking",
        )


class ChatCompletionRequest(Completing, Thoughtful):
    """A conversation to answer. What else OpenAI's API has is refused by name, unless its value changes nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "你好"}]}]})

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(bounded)] = Field(
        description="The conversation, oldest first. No system prompt is added."
    )
    max_completion_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    max_tokens: NewTokens | None = Field(None, description="The same by its older name.")
    logprobs: bool = Field(False, description="Tell the log-probability of each token of the answer.")
    top_logprobs: int = Field(
        0, ge=0, le=MOST_LOGPROBS, description="With logprobs: so many of the likeliest tokens in each place, too."
    )
    tools: Tools = Field([], description="Functions of yours that the model may ask for, one in each answer.")
    tool_choice: Choice = Field(
        AUTO,
        description="auto: it may call one; required, or a name: it must; none: it must not; allowed_tools: one of "
        "some, though it is told of all.",
        json_schema_extra={"default": "auto"},
    )
    metadata: Metadata = Field({}, description="Names and values of yours; nothing is kept of them.")
    safety_identifier: Label | None = Field(None, description="user by its newer name.")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = without(unserved.OF_REQUEST, as_ours(value))
        _thinking_as_ours(value)
        tools = value.get("tools")
        if isinstance(tools, list) and len(tools) <= MAX_TOOLS:
            value["tools"] = cleaned_tools(tools)
        messages = value.get("messages")
        if isinstance(messages, list) and len(messages) <= MAX_TURNS:  # of more, none is looked at
            value["messages"] = cleaned_messages(messages)
        return value

    @property
    def limit_name(self) -> str:
        """By which name the client set the most tokens of the answer."""
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"
