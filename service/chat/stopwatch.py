"""What one request adds to metrics and log: how long it took, how many tokens it had, the one way in which it ended."""

import asyncio
import time
from typing import NamedTuple, Self

from service import log
from service.engine.base import Finish, FinishReason, Token
from service.errors import DeadlineExceeded, InvalidRequest
from service.metrics import Metrics

GAVE_UP = (FinishReason.DEADLINE, FinishReason.CANCELLED)
"""Left out, those that waited longest would make the queue look shortest when it is longest."""


class Counts(NamedTuple):
    """Tokens of one request so far: of its prompt, how many of those were cached, and of its answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Stopwatch:
    """Times one request from its making to the end of its `with` block, where its outcome is counted once.

    Without `metrics` it counts and notes nothing. `prompt_tokens`: None until `submitted`. `queue_seconds`: None until
    the first token, or the end of a request that gave up before it. `finish`: None until the answer has come to an end.
    """

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._submitted = self._first = self._last = 0.0
        self.prompt_tokens: int | None = None
        self.tokens = 0
        self.cached_tokens = 0
        self.queue_seconds: float | None = None
        self.finish: Finish | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.finish is None:
            self._end(_outcome(error))
        if self._metrics is not None:
            outcome = self.finish.reason if self.finish else _outcome(error)
            self._count(self._metrics, outcome)
            self._note(outcome)

    def submitted(self, prompt_tokens: int) -> None:
        """The engine gets the request now, with so many tokens."""
        self._submitted = time.perf_counter()
        self.prompt_tokens = prompt_tokens

    def token(self, event: Token) -> None:
        """Take in a token of the answer, which has just come."""
        says_the_prompt = self.tokens == 0 and self.queue_seconds is not None
        self.begun(event)
        self._last = time.perf_counter()
        self.tokens += 1
        if self.tokens > 1:
            return
        self._first = self._last
        if self._metrics is not None and not says_the_prompt:  # else it is no reading of a prompt that took so long
            self._metrics.first_token_seconds.observe(self._first - self._start)

    def begun(self, event: Token) -> None:
        """Take in what the first token to come, be it the answer's or the prompt's again, says of the request."""
        if self.queue_seconds is None:
            self.cached_tokens = event.cached_tokens
            self._queued(event.queue_time)

    @property
    def counts(self) -> Counts:
        """What it came to so far."""
        return Counts(self.prompt_tokens or 0, self.cached_tokens, self.tokens)

    def end(self, finish: Finish) -> None:
        """The answer has come to its end."""
        self.finish = finish
        self._end(finish.reason)

    def _end(self, outcome: FinishReason) -> None:
        if self.queue_seconds is None and self.prompt_tokens is not None and outcome in GAVE_UP:
            self._queued(time.perf_counter() - self._submitted)

    def _queued(self, seconds: float) -> None:
        self.queue_seconds = seconds
        if self._metrics is not None:
            self._metrics.queue_seconds.observe(seconds)

    def _count(self, metrics: Metrics, outcome: FinishReason) -> None:
        metrics.requests.labels(outcome.value).inc()
        if outcome is FinishReason.REJECTED:
            return  # its few milliseconds would make an overloaded service look fast
        if self.prompt_tokens is not None:
            metrics.prompt_tokens.observe(self.prompt_tokens)
        metrics.generation_tokens.observe(self.tokens)
        metrics.request_seconds.observe(time.perf_counter() - self._start)
        if self.tokens > 1:
            metrics.output_token_seconds.observe((self._last - self._first) / (self.tokens - 1))

    def _note(self, outcome: FinishReason) -> None:
        """For the request's line of the log."""
        log.note(outcome=outcome.value, completion_tokens=self.tokens)
        if self.prompt_tokens is not None:
            log.note(prompt_tokens=self.prompt_tokens, cached_tokens=self.cached_tokens)
        if self.queue_seconds is not None:
            log.note(queue_seconds=round(self.queue_seconds, 4))
        if self.tokens:
            log.note(first_token_seconds=round(self._first - self._start, 4))


def _outcome(error: BaseException | None) -> FinishReason:
    """How a request without a Finish ended: the engine never had it, or its client left."""
    match error:
        case GeneratorExit() | asyncio.CancelledError():
            return FinishReason.CANCELLED
        case DeadlineExceeded():
            return FinishReason.DEADLINE
        case InvalidRequest():
            return FinishReason.REJECTED
    return FinishReason.ERROR
