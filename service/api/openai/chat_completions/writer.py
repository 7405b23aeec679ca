"""Writes what a client of OpenAI's API is answered: one chat completion, or the chunks of one."""

from collections.abc import Sequence

from service.api import sse
from service.api.answer import Answer, Call
from service.api.health import Identity
from service.api.openai import errors
from service.api.openai.chat_completions.completion import (
    AnsweredCall,
    AnswerMessage,
    Arguments,
    CallBegins,
    CalledFunction,
    CallGoesOn,
    CallingMessage,
    CallPiece,
    ChatCompletion,
    Choice,
    ChoiceLogprobs,
    Chunk,
    ChunkChoice,
    CountedChunk,
    FirstCallDelta,
    FirstDelta,
    NoDelta,
    TextPiece,
)
from service.api.openai.completing import StreamOptions
from service.api.openai.ids import new_id
from service.api.openai.named import names
from service.api.openai.usage import CompletionUsage, usage
from service.chat.logprobs import TokenReport
from service.chat.pieces import Delta, Done, TextDelta
from service.chat.stopwatch import Counts
from service.errors import ServiceError


class ChatCompletionWriter:
    """Writes the answers to one request, so many `choices`; with `reports`, what their tokens are reported with."""

    def __init__(self, identity: Identity, options: StreamOptions, *, reports: bool, choices: int = 1) -> None:
        self._named = names("chatcmpl", identity)
        self._options = options
        self._reports = reports
        self._choices = choices
        self._begun: set[int] = set()

    def error(self, problem: ServiceError) -> bytes:
        """An event without a name: clients look for `error` in the data of any."""
        return sse.event(errors.body(problem))

    def delta(self, piece: Delta) -> list[Chunk]:
        begins = self._begin_in_order(piece.counts)
        delta = self._delta(piece)
        self._begun.add(piece.choice)
        logprobs = self._logprobs(piece.tokens if isinstance(piece, TextDelta) else [])
        return [*begins, self._chunk(ChunkChoice(index=piece.choice, delta=delta, logprobs=logprobs), piece.counts)]

    def _begin_in_order(self, counts: Counts) -> list[Chunk]:
        """Of several answers, each one's role before any of their texts: the official client has a place only for the
        next one that begins."""
        if self._choices == 1 or self._begun:
            return []
        self._begun.update(range(self._choices))
        none_yet = counts._replace(completion_tokens=0)
        return [self._chunk(_role_alone(index, self._logprobs([])), none_yet) for index in range(self._choices)]

    def _delta(self, piece: Delta) -> FirstDelta | TextPiece | FirstCallDelta | CallPiece:
        has_begun = piece.choice in self._begun
        if isinstance(piece, TextDelta):
            return TextPiece(content=piece.text) if has_begun else FirstDelta(content=piece.text)
        if not piece.name:
            return CallPiece(tool_calls=[CallGoesOn(function=Arguments(arguments=piece.arguments))])
        call = CallBegins(id=new_id("call"), function=CalledFunction(name=piece.name, arguments=piece.arguments))
        return CallPiece(tool_calls=[call]) if has_begun else FirstCallDelta(tool_calls=[call])

    def last(self, response: str, done: Done) -> list[Chunk]:
        begins = self._begin_in_order(done.counts)
        delta = NoDelta() if done.choice in self._begun else FirstDelta(content=response)
        logprobs = self._logprobs(done.tokens) if done.tokens else None
        choice = ChunkChoice(index=done.choice, delta=delta, logprobs=logprobs, finish_reason=done.finish_reason)
        return [*begins, self._chunk(choice, done.counts)]

    def behind(self, answers: Sequence[Answer]) -> list[Chunk]:
        if not self._options.include_usage:
            return []
        return [CountedChunk(**self._named, choices=[], usage=self._usage(answers))]

    def whole(self, answers: Sequence[Answer]) -> ChatCompletion:
        return ChatCompletion(**self._named, choices=list(map(self._choice, answers)), usage=self._usage(answers))

    def _usage(self, answers: Sequence[Answer]) -> CompletionUsage:
        return usage([answer.done.counts for answer in answers], self._choices)

    def _choice(self, answer: Answer) -> Choice:
        return Choice(
            index=answer.done.choice,
            message=message_of(answer.text, answer.call),
            logprobs=self._logprobs(answer.done.tokens),
            finish_reason=answer.done.finish_reason,
        )

    def _logprobs(self, tokens: list[TokenReport]) -> ChoiceLogprobs | None:
        # As they are: to look at each of them again would take longer than to make them.
        return ChoiceLogprobs.model_construct(content=tokens) if self._reports else None

    def _chunk(self, choice: ChunkChoice, counts: Counts) -> Chunk:
        if not self._options.include_usage:
            return Chunk(**self._named, choices=[choice])
        so_far = usage([counts], choices=1) if self._options.continuous_usage_stats else None
        return CountedChunk(**self._named, choices=[choice], usage=so_far)


def _role_alone(index: int, logprobs: ChoiceLogprobs | None) -> ChunkChoice:
    return ChunkChoice(index=index, delta=FirstDelta(content=""), logprobs=logprobs)


def message_of(text: str, call: Call | None) -> AnswerMessage | CallingMessage:
    """What an answer says, and calls."""
    if call is None:
        return AnswerMessage(content=text)
    answered = AnsweredCall(id=new_id("call"), function=CalledFunction(**call._asdict()))
    return CallingMessage(content=text or None, tool_calls=[answered])
