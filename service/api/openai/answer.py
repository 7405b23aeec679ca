"""What a client of OpenAI's API is answered: one chat completion, or the chunks of one."""

import time
from typing import Any, Literal

from pydantic import BaseModel

from service.api import sse
from service.api.health import Identity
from service.api.openai import errors
from service.api.openai.request import StreamOptions
from service.chat.generation import Done, TextDelta
from service.chat.logprobs import Likelihood, TokenReport
from service.chat.stopwatch import Counts
from service.errors import ServiceError
from service.log import request_id

FinishReason = Literal["stop", "length"]


class PromptTokens(BaseModel):
    """Of the prompt's tokens, how many were found in the prefix cache."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """What the answer cost, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class AnswerMessage(BaseModel):
    """The answer itself."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class TokenChance(BaseModel):
    """A token and the natural logarithm of its probability, as the model gives it: before penalties, temperature and
    filters. `bytes`: its text's; null for a special token, which has none and goes by its name."""

    token: str
    logprob: float
    bytes: list[int] | None


class AnswerToken(TokenChance):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[TokenChance]


class ChoiceLogprobs(BaseModel):
    """For a client that asked for logprobs: the tokens of the answer, or of a piece of it, but the one that ends it."""

    content: list[AnswerToken]
    refusal: None = None


class Choice(BaseModel):
    """The one answer there is."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason


class Named(BaseModel):
    """What every object of an answer says: of which answer it is, since when, of which model and weights."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


class Completion(Named):
    """The whole answer."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[Choice]
    usage: CompletionUsage


class FirstDelta(BaseModel):
    """The first piece of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class TextPiece(BaseModel):
    """A further piece of an answer."""

    content: str


class NoDelta(BaseModel):
    """No more text."""


class ChunkChoice(BaseModel):
    """A piece of the one answer there is; the last one tells how it ended."""

    index: Literal[0] = 0
    delta: FirstDelta | TextPiece | NoDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class Chunk(Named):
    """An event of a streamed answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class CountedChunk(Chunk):
    """The same for a client that asked for usage: that of the whole answer comes in an event of its own at the end;
    before that there is none, or in every event the one so far."""

    usage: CompletionUsage | None = None


class CompletionWriter:
    """Writes one answer; with `reports`, what its tokens are reported with."""

    def __init__(self, identity: Identity, options: StreamOptions, *, reports: bool) -> None:
        self._named = {
            "id": f"chatcmpl-{request_id.get()}",
            "created": int(time.time()),
            "model": identity.model,
            "system_fingerprint": f"fp_{identity.manifest[:10]}" if identity.manifest else None,
        }
        self._options = options
        self._reports = reports
        self._begun = False

    def error(self, problem: ServiceError) -> bytes:
        """An event without a name: clients look for `error` in the data of any."""
        return sse.event(errors.body(problem))

    def delta(self, piece: TextDelta) -> Chunk:
        delta = TextPiece(content=piece.text) if self._begun else FirstDelta(content=piece.text)
        self._begun = True
        return self._chunk(ChunkChoice(delta=delta, logprobs=self._logprobs(piece.tokens)), piece.counts)

    def last(self, response: str, done: Done) -> list[Chunk]:
        delta = NoDelta() if self._begun else FirstDelta(content=response)
        logprobs = self._logprobs(done.tokens) if done.tokens else None
        end = self._chunk(ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=done.finish_reason), done.counts)
        counted = CountedChunk(**self._named, choices=[], usage=usage(done.counts))
        return [end, counted] if self._options.include_usage else [end]

    def whole(self, response: str, done: Done) -> Completion:
        message, logprobs = AnswerMessage(content=response), self._logprobs(done.tokens)
        choice = Choice(message=message, logprobs=logprobs, finish_reason=done.finish_reason)
        return Completion(**self._named, choices=[choice], usage=usage(done.counts))

    def _logprobs(self, tokens: list[TokenReport]) -> ChoiceLogprobs | None:
        return ChoiceLogprobs(content=list(map(_answer_token, tokens))) if self._reports else None

    def _chunk(self, choice: ChunkChoice, counts: Counts) -> Chunk:
        if not self._options.include_usage:
            return Chunk(**self._named, choices=[choice])
        so_far = usage(counts) if self._options.continuous_usage_stats else None
        return CountedChunk(**self._named, choices=[choice], usage=so_far)


def _answer_token(report: TokenReport) -> AnswerToken:
    return AnswerToken(**_chance(report.own), top_logprobs=[TokenChance(**_chance(each)) for each in report.likeliest])


def _chance(likelihood: Likelihood) -> dict[str, Any]:
    data = likelihood.data
    return {"token": likelihood.text, "logprob": likelihood.logprob, "bytes": None if data is None else list(data)}


def usage(counts: Counts) -> CompletionUsage:
    """An answer's counts as OpenAI names them."""
    return CompletionUsage(
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        total_tokens=counts.prompt_tokens + counts.completion_tokens,
        prompt_tokens_details=PromptTokens(cached_tokens=counts.cached_tokens),
    )
