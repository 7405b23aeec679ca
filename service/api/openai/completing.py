"""What completions of either kind, of chats and of texts, are asked with alike."""

from typing import Annotated, Any

import msgspec
from pydantic import Field, model_validator

from service.api.fields import Label, StopOrStops, Strict, TokenId
from service.api.openai.limits import MOST_CHOICES
from service.api.openai.logit_bias import LogitBias
from service.api.openai.structured_outputs import StructuredOutputs
from service.api.openai.unserved import OF_STREAM_OPTIONS, without
from service.api.response_format import Formatted, kept_to
from service.chat.form import Form
from service.engine.base import SamplingParams
from service.errors import InvalidRequest

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
    structured_outputs: StructuredOutputs | None = Field(
        None, description="As in vLLM's server: the answer is one of a few texts, or matches a pattern, or is JSON."
    )
    user: Label | None = Field(None, description="For whom you ask; the service's log names it with the request.")

    @property
    def end_is_moved_by(self) -> list[str]:
        """The fields that have an answer end elsewhere than the model has it."""
        return [name for name in ("ignore_eos", "stop_token_ids") if getattr(self, name)]

    def answer_form(self, *, thinking: bool = False) -> Form | None:
        """What the answer must be; None for any text. Raises InvalidRequest as `kept_to`, and for two forms."""
        form = super().answer_form(thinking=thinking)
        if self.structured_outputs is None:
            return form
        if form is not None:
            raise InvalidRequest(
                f"{form.name} says as well what form the answer has; send one of them", field="structured_outputs"
            )
        return kept_to(self.structured_outputs.form, thinking=thinking)

    def sampling(self) -> SamplingParams:
        """What the engine gets of it; without a seed, a new one for each request."""
        return msgspec.structs.replace(super().sampling(), logit_bias=tuple(self.logit_bias.items()))
