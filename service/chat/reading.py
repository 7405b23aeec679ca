"""One answer, from the engine's tokens to pieces for its client."""

import math
from collections.abc import Sequence

from service.chat.logprobs import Reporter, TokenReport
from service.chat.pieces import CallDelta, Delta, Done, TextDelta
from service.chat.stops import StopMatcher
from service.chat.stopwatch import Counts
from service.chat.tools.markup import CallMarks
from service.chat.tools.reading import CallReader
from service.engine.base import Finish, FinishReason, Logprobs, Token
from service.tokenizer.detokenizer import Detokenizer
from service.tokenizer.tokenizer import Tokenizer

NOTHING_BEFORE = Logprobs(math.nan)
"""Of a prompt's first token: there is nothing that it could be likely after."""


class AnswerReader:
    """Tokens to text, cut at the first stop string, and their reports, but for the one of `stop_ids` that ends it. What
    comes between `marks` is a call. One of `silent_ids` ends the answer, and its text is none of it. `continues`: the
    text goes on within another one."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: list[str],
        reporter: Reporter,
        stop_ids: list[int],
        marks: CallMarks | None = None,
        *,
        silent_ids: Sequence[int] = (),
        continues: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, continues=continues)
        self._stops = StopMatcher(stops)
        self._reporter = reporter
        self._stop_ids = stop_ids
        self._marks = marks
        self._silent_ids = silent_ids
        self._call: _Call | None = None
        self._come = self._handed_on = 0  # characters of text
        self._echo = ""  # text of the prompt that is to be handed on with the next one
        self._echoes = 0  # tokens of the prompt that are yet to come
        self._owed = 0  # reports of the prompt's tokens that are yet to be handed on

    @property
    def stopped(self) -> bool:
        return self._stops.stopped is not None

    @property
    def is_echoing(self) -> bool:
        """Whether the next token is the prompt's."""
        return self._echoes > 0

    def echo(self, first: int, rest: int) -> None:
        """The answer begins with the prompt's tokens: `first`, and so many that the engine is yet to say."""
        self._echoes, self._owed = rest, 1 + rest
        self._reporter.push(first, NOTHING_BEFORE, first=True, at=0)
        self._echo = self._detokenizer.push([first])
        self._come = len(self._echo)

    def push(self, event: Token, counts: Counts) -> Delta | None:
        """The answer goes on with a token."""
        if self._call:
            return self._call.push(event, counts)
        if self._marks and event.token == self._marks.start:
            rest = self._rest_of_text()
            self._call = None if self.stopped else _Call(self._tokenizer, self._marks.end)
            return self._delta(rest, counts)
        return self._delta(self._text_of(event), counts)

    def flush(self, counts: Counts) -> Delta | None:
        """What was held back, when the last token has come."""
        if self._call:
            return self._call.flush(counts)
        return self._delta(self._rest_of_text(), counts)

    def judged(self, finish: Finish) -> Finish:
        """How the answer ended, which is an error of the engine's in the middle of a call."""
        if self._call and not self._call.is_whole and finish.reason is FinishReason.STOP:
            return Finish(finish.id, FinishReason.ERROR, "the engine ended the call of a tool half-way")
        return finish

    def done(self, reason: str, counts: Counts) -> Done:
        """The end, for which the engine has this `reason`."""
        calls = self._call is not None and reason == FinishReason.STOP
        return Done("tool_calls" if calls else reason, counts, self._last_reports())

    def _text_of(self, event: Token) -> str:
        if event.logprobs and event.token not in self._stop_ids:
            first = self._detokenizer.at_start
            self._reporter.push(event.token, event.logprobs, first=first, at=self._come)
        ends = event.token in self._silent_ids and not self.is_echoing
        text = "" if ends else self._detokenizer.push([event.token])
        self._come += len(text)
        if self.is_echoing:
            self._echoes -= 1
        else:
            text = self._stops.push(text)
        echo, self._echo = self._echo, ""
        return self._handing_on(echo + text)

    def _rest_of_text(self) -> str:
        if self.stopped:
            return ""
        return self._handing_on(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _delta(self, text: str, counts: Counts) -> TextDelta | None:
        """With the reports of the tokens that begin in the text that was handed on since the last ones."""
        if not text:
            return None
        reports = self._reporter.take(self._handed_on)
        self._owed = max(0, self._owed - len(reports))
        return TextDelta(text, counts, reports)

    def _last_reports(self) -> list[TokenReport]:
        """Of those that gave no text behind that. What spelled a stop string is none of the answer's."""
        rest = self._reporter.take_all()
        return rest[: self._owed] if self.stopped else rest

    def _handing_on(self, text: str) -> str:
        self._handed_on += len(text)
        return text


class _Call:
    """The answer's call, token by token up to its `end`. Its name goes with its first delta."""

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._reader = CallReader()
        self._end = end
        self._is_named = False
        self.is_whole = False

    def push(self, event: Token, counts: Counts) -> CallDelta | None:
        self.is_whole = event.token == self._end
        return self._delta(self._reader.push(self._detokenizer.push([event.token])), counts)

    def flush(self, counts: Counts) -> CallDelta | None:
        rest = self._reader.push(self._detokenizer.flush())
        return self._delta(rest + ("" if self.is_whole else self._reader.cut()), counts)

    def _delta(self, arguments: str, counts: Counts) -> CallDelta | None:
        name = "" if self._is_named else self._reader.name
        self._is_named = bool(self._reader.name)
        return CallDelta(name, arguments, counts) if name or arguments else None
