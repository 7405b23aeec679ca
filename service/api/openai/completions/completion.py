"""The wire models of an answer to a text: one completion, or the chunks of one."""

from typing import Literal

from pydantic import BaseModel

from service.api.openai.named import Named
from service.api.openai.usage import CompletionUsage


class TextLogprobs(BaseModel):
    """For a client that asked for logprobs: the tokens of the answer, or of a piece of it, with the one that ends it.

    `top_logprobs`: those of the likeliest tokens in each place and of the one that stands there, by their texts; null,
    as its own, for the first token of a prompt. `text_offset`: characters of the answer before each token.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One of the answers, or a piece of it, of which the last one tells how that ended. `index`: of the answers to the
    first prompt, then of those to the second."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class CompletionChunk(Named):
    """An event of a streamed answer."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class CountedCompletionChunk(CompletionChunk):
    """The same for a client that asked for usage: that of all answers comes in an event of its own at the end; before
    that there is none, or in every event that of its answer so far."""

    usage: CompletionUsage | None = None


class Completion(CompletionChunk):
    """The whole answers."""

    usage: CompletionUsage
