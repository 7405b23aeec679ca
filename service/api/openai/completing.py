"""What completions of either kind, of chats and of texts, are asked with alike."""

from typing import Annotated, Any

import msgspec
from pydantic import Field, model_validator

from service.api.fields import Label, StopOrStops, Strict, TokenId
from service.api.openai.limits import MOST_CHOICES
from service.api.openai.logit_bias import LogitBias
from service.api.openai.unserved import OF_STREAM_OPTIONS, without
from service.api.response_format import Formatted
from service.engine.base import SamplingParams

StopTokens = Annotated[list[TokenId], Field(max_length=16, fail_fast=True)]


class StreamOptions(Strict):
    """What a stream has besides the answer: with `include_usage` an event at its end that counts tokens, and with
    `continuous_usage_stats` as well the count so far in every event."""

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="before")
    @classmethod
    def _served(cls, value: Any) -> Any:
        return without(OF_STREAM_OPTIONS, value, "stream_options.")


class Completing(Formatted):
    """Which model answers, how often, by which of its tokens, and where an answer ends."""

    model: str | None = Field(None, description="The model that GET /v1/models names; unset: the same.")
    stream_options: StreamOptions = Field(StreamOptions(), description="What a stream has besides the answer.")
    stop: StopOrStops = Field([], description="An answer ends before the first of these.")
    stop_token_ids: StopTokens = Field([], description="An answer ends with the first of these, too, without its text.")
    ignore_eos: bool = Field(False, description="Go on past the answer's end, up to the limit: for benchmarks.")
    n: int = Field(1, ge=1, le=MOST_CHOICES, description="So many answers to a prompt, each with a seed of its own.")
    logit_bias: LogitBias = Field(
        {}, description="By a token's id, what is added to its logit: -100 keeps it out, 100 leaves no other a chance."
    )
    user: Label | None = Field(None, description="For whom you ask; the service's log names it with the request.")

    @property
    def end_is_moved_by(self) -> list[str]:
        """The fields that have an answer end elsewhere than the model has it."""
        return [name for name in ("ignore_eos", "stop_token_ids") if getattr(self, name)]

    def sampling(self) -> SamplingParams:
        """What the engine gets of it; without a seed, a new one for each request."""
        return msgspec.structs.replace(super().sampling(), logit_bias=tuple(self.logit_bias.items()))
