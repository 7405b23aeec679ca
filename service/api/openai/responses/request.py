"""What a client may send to be given a response: bounds and defaults are those of the other routes.

Source: https://platform.openai.com/docs/api-reference/responses/create
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from service.api.fields import MAX_TURNS, Label, Metadata, NewTokens, Strict, Text, Thoughtful, bounded
from service.api.openai.limits import DEFAULT_NEW_TOKENS
from service.api.openai.other_servers import as_ours
from service.api.openai.responses import unserved
from service.api.openai.responses.items import Item, cleaned_items
from service.api.openai.responses.tools import Choice, Tools, cleaned_tools
from service.api.openai.tool_choice import AUTO
from service.api.openai.tools import MAX_TOOLS
from service.api.openai.unserved import without
from service.api.response_format import NamedSchema, schema_of
from service.engine.defaults import MOST_LOGPROBS

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""All but LOGPROBS is of things that no answer here has."""


class TextFormat(NamedSchema):
    """What form the answer has: text, or the JSON of some object or of a schema, which lies beside its type."""

    type: Literal["text", "json_object", "json_schema"]

    @model_validator(mode="after")
    def _one_schema(self) -> "TextFormat":
        if self.schema_ is not None and self.type != "json_schema":
            raise ValueError("a schema belongs to the type json_schema")
        return self

    @property
    def schema_of_json(self) -> dict[str, Any] | None:
        """What the answer must fit; None for text."""
        return schema_of(self.type, self.schema_)


class TextOptions(Strict):
    """How an answer's text is written."""

    format: TextFormat = TextFormat(type="text")

    def repeated(self) -> dict[str, Any]:
        """As a response tells it again."""
        return {"format": self.format.model_dump(by_alias=True, exclude_unset=True)}


def _plain(text: Any) -> Any:
    """Without nulls, and without what asks for nothing."""
    text = without(unserved.OF_TEXT, text, "text.")
    if isinstance(text, dict) and "format" in text:
        text["format"] = without({}, text["format"])
    return text


def _or_a_text(schema: dict[str, Any]) -> None:
    items = {name: schema.pop(name) for name in ("type", "items", "minItems", "maxItems")}
    schema["anyOf"] = [{"type": "string"}, items]


class ResponseRequest(Thoughtful):
    """A conversation to answer. What else OpenAI's API has is refused by name, unless its value changes nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": "你好"}]})

    model: str | None = Field(None, description="The model that GET /v1/models names; unset: the same.")
    input: Annotated[list[Item], Field(min_length=1, max_length=MAX_TURNS), AfterValidator(bounded)] = Field(
        description="The conversation, oldest first, or the text of a user's only message.",
        json_schema_extra=_or_a_text,
    )
    instructions: Text | None = Field(None, description="A system prompt before the input; none is added by itself.")
    max_output_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of the answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    ignore_eos: bool = Field(False, description="Go on past the answer's end, up to the limit: for benchmarks.")
    text: TextOptions = Field(TextOptions(), description="What form the answer has: text, or JSON.")
    tools: Tools = Field([], description="Functions of yours that the model may ask for, one in each answer.")
    tool_choice: Choice = Field(
        AUTO,
        description="auto: it may call one; required, or a name: it must; none: it must not; allowed_tools: one of "
        "some, though it is told of all.",
        json_schema_extra={"default": "auto"},
    )
    include: list[Includable] = Field([], max_length=100, description=f"{LOGPROBS}: tell those of the answer's tokens.")
    top_logprobs: int = Field(
        0, ge=0, le=MOST_LOGPROBS, description="With logprobs: so many of the likeliest tokens in each place, too."
    )
    metadata: Metadata = Field({}, description="Names and values of yours, which the response repeats.")
    user: Label | None = Field(None, description="For whom you ask; the service's log names it with the request.")
    safety_identifier: Label | None = Field(None, description="The same by its newer name.")

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = unserved.served(as_ours(value))
        if "text" in value:
            value["text"] = _plain(value["text"])
        tools = value.get("tools")
        if isinstance(tools, list) and len(tools) <= MAX_TOOLS:
            value["tools"] = cleaned_tools(tools)
        items = value.get("input")
        if isinstance(items, str):
            value["input"] = [{"role": "user", "content": items}]
        elif isinstance(items, list) and len(items) <= MAX_TURNS:  # of more, none is looked at
            value["input"] = cleaned_items(items)
        return value
