"""Writes what a client that has texts gone on with is answered: one completion, or the chunks of one."""

from collections import defaultdict
from collections.abc import Sequence

from service.api import sse
from service.api.answer import Answer
from service.api.health import Identity
from service.api.openai import errors
from service.api.openai.completing import StreamOptions
from service.api.openai.completions.completion import (
    Completion,
    CompletionChunk,
    CountedCompletionChunk,
    TextChoice,
    TextLogprobs,
)
from service.api.openai.completions.logprobs import Columns
from service.api.openai.named import names
from service.api.openai.usage import CompletionUsage, usage
from service.chat.logprobs import TokenReport
from service.chat.pieces import Delta, Done, TextDelta
from service.chat.stopwatch import Counts
from service.errors import ServiceError


class CompletionWriter:
    """Writes the answers to one request, so many `choices` to each prompt, behind what `echo` has for each; with
    `reports`, their tokens' too, for which `decode_errors` tells how their text was made (see `Generation`)."""

    def __init__(
        self,
        identity: Identity,
        options: StreamOptions,
        *,
        reports: bool,
        choices: int,
        decode_errors: str,
        echo: Sequence[str] = (),
    ) -> None:
        self._named = names("cmpl", identity)
        self._options = options
        self._reports = reports
        self._choices = choices
        self._echo = dict(enumerate(each for each in echo for _ in range(choices)))
        self._columns: defaultdict[int, Columns] = defaultdict(lambda: Columns(decode_errors))

    def error(self, problem: ServiceError) -> bytes:
        """An event without a name: clients look for `error` in the data of any."""
        return sse.event(errors.body(problem))

    def delta(self, piece: Delta) -> list[CompletionChunk]:
        assert isinstance(piece, TextDelta), "no tools are offered here"
        logprobs = self._logprobs(piece.choice, piece.tokens)
        text = self._echo.pop(piece.choice, "") + piece.text
        return [self._chunk(TextChoice(index=piece.choice, text=text, logprobs=logprobs), piece.counts)]

    def last(self, response: str, done: Done) -> list[CompletionChunk]:
        return [self._chunk(self._choice(Answer("", done)), done.counts)]  # its text has been sent

    def behind(self, answers: Sequence[Answer]) -> list[CompletionChunk]:
        if not self._options.include_usage:
            return []
        return [CountedCompletionChunk(**self._named, choices=[], usage=self._usage(answers))]

    def whole(self, answers: Sequence[Answer]) -> Completion:
        return Completion(**self._named, choices=list(map(self._choice, answers)), usage=self._usage(answers))

    def _choice(self, answer: Answer) -> TextChoice:
        done = answer.done
        return TextChoice(
            index=done.choice,
            text=self._echo.pop(done.choice, "") + answer.text,
            logprobs=self._logprobs(done.choice, done.tokens),
            finish_reason=done.finish_reason,
        )

    def _logprobs(self, choice: int, tokens: list[TokenReport]) -> TextLogprobs | None:
        return self._columns[choice].of(tokens) if self._reports else None

    def _usage(self, answers: Sequence[Answer]) -> CompletionUsage:
        return usage([answer.done.counts for answer in answers], self._choices)

    def _chunk(self, choice: TextChoice, counts: Counts) -> CompletionChunk:
        if not self._options.include_usage:
            return CompletionChunk(**self._named, choices=[choice])
        so_far = usage([counts], choices=1) if self._options.continuous_usage_stats else None
        return CountedCompletionChunk(**self._named, choices=[choice], usage=so_far)
