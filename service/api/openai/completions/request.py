"""What a client may send to have a text gone on with: bounds and defaults are those of the other routes.

Source: https://platform.openai.com/docs/api-reference/completions/create
"""

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from service.api.fields import NewTokens
from service.api.openai.completing import Completing
from service.api.openai.completions import unserved
from service.api.openai.completions.prompts import Prompts
from service.api.openai.other_servers import as_ours
from service.api.openai.unserved import without
from service.engine.defaults import MOST_LOGPROBS

DEFAULT_NEW_TOKENS = 16
"""OpenAI's own: a text that is gone on with need not end by itself."""


class CompletionRequest(Completing):
    """A text to go on with. What else OpenAI's API has is refused by name, unless its value changes nothing."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "The sea is", "max_tokens": 32}]})

    prompt: Prompts = Field(
        description="A text, token ids, or a list of either. It goes to the model as it is, without a chat template: "
        "in a text the name of a special token is that token, so put none of others in it where that matters."
    )
    add_special_tokens: bool = Field(
        True, description="A text has the bos token first, where the model's tokenizer is set so."
    )
    max_tokens: NewTokens | None = Field(
        None, description=f"Most tokens of each answer; unset: {DEFAULT_NEW_TOKENS} or what the context leaves."
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MOST_LOGPROBS,
        description="Tell the log-probability of each token, and of so many of the likeliest in its place.",
    )
    echo: bool = Field(
        False,
        description="Begin each answer with its prompt. With logprobs, those of its tokens are told, too, and its text "
        "is that of its tokens, of which special ones have none; without, it is a text.",
    )

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return without(unserved.OF_REQUEST, as_ours(value))
