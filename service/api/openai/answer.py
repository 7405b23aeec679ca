"""What a client of OpenAI's API is answered: one chat completion, or the chunks of one."""

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from service.api import sse
from service.api.answer import Answer
from service.api.health import Identity
from service.api.openai import errors
from service.api.openai.request import StreamOptions
from service.chat.generation import Done, TextDelta
from service.chat.logprobs import TokenReport
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


class ChoiceLogprobs(BaseModel):
    """For a client that asked for logprobs: the tokens of the answer, or of a piece of it, but the one that ends it."""

    content: list[TokenReport]
    refusal: None = None


class Choice(BaseModel):
    """One of the answers, as many as `n` asked for."""

    index: int
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
    """A piece of one answer; the last one tells how that ended."""

    index: int
    delta: FirstDelta | TextPiece | NoDelta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None


class Chunk(Named):
    """An event of a streamed answer."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class CountedChunk(Chunk):
    """The same for a client that asked for usage: that of all answers comes in an event of its own at the end; before
    that there is none, or in every event that of its answer so far."""

    usage: CompletionUsage | None = None


class CompletionWriter:
    """Writes the answers to one request; with `reports`, what their tokens are reported with."""

    def __init__(self, identity: Identity, options: StreamOptions, *, reports: bool) -> None:
        self._named = {
            "id": f"chatcmpl-{request_id.get()}",
            "created": int(time.time()),
            "model": identity.model,
            "system_fingerprint": f"fp_{identity.manifest[:10]}" if identity.manifest else None,
        }
        self._options = options
        self._reports = reports
        self._begun: set[int] = set()

    def error(self, problem: ServiceError) -> bytes:
        """An event without a name: clients look for `error` in the data of any."""
        return sse.event(errors.body(problem))

    def delta(self, piece: TextDelta) -> Chunk:
        delta = TextPiece(content=piece.text) if piece.choice in self._begun else FirstDelta(content=piece.text)
        self._begun.add(piece.choice)
        logprobs = self._logprobs(piece.tokens)
        return self._chunk(ChunkChoice(index=piece.choice, delta=delta, logprobs=logprobs), [piece.counts])

    def last(self, response: str, done: Done) -> Chunk:
        delta = NoDelta() if done.choice in self._begun else FirstDelta(content=response)
        logprobs = self._logprobs(done.tokens) if done.tokens else None
        choice = ChunkChoice(index=done.choice, delta=delta, logprobs=logprobs, finish_reason=done.finish_reason)
        return self._chunk(choice, [done.counts])

    def behind(self, answers: Sequence[Answer]) -> list[Chunk]:
        if not self._options.include_usage:
            return []
        return [CountedChunk(**self._named, choices=[], usage=usage([done.counts for _, done in answers]))]

    def whole(self, answers: Sequence[Answer]) -> Completion:
        counts = [done.counts for _, done in answers]
        return Completion(**self._named, choices=list(map(self._choice, answers)), usage=usage(counts))

    def _choice(self, answer: Answer) -> Choice:
        return Choice(
            index=answer.done.choice,
            message=AnswerMessage(content=answer.text),
            logprobs=self._logprobs(answer.done.tokens),
            finish_reason=answer.done.finish_reason,
        )

    def _logprobs(self, tokens: list[TokenReport]) -> ChoiceLogprobs | None:
        # As they are: to look at each of them again would take longer than to make them.
        return ChoiceLogprobs.model_construct(content=tokens) if self._reports else None

    def _chunk(self, choice: ChunkChoice, counts: list[Counts]) -> Chunk:
        if not self._options.include_usage:
            return Chunk(**self._named, choices=[choice])
        so_far = usage(counts) if self._options.continuous_usage_stats else None
        return CountedChunk(**self._named, choices=[choice], usage=so_far)


def usage(counts: Sequence[Counts]) -> CompletionUsage:
    """The counts of answers to one prompt, as OpenAI names them: that is counted once."""
    first, completion_tokens = counts[0], sum(each.completion_tokens for each in counts)
    return CompletionUsage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=first.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokens(cached_tokens=first.cached_tokens),
    )
