"""What one request adds to the metrics: how long it took, how many tokens it had, and the one way in which it ended."""

import asyncio
import time
from typing import Self

from service.engine.base import Finish, FinishReason, Token
from service.errors import DeadlineExceeded, InvalidRequest
from service.metrics import Metrics


class Stopwatch:
    """Times one request from its making to the end of its `with` block, where its outcome is counted once.

    Without `metrics` it counts nothing. `prompt_tokens`: None until the prompt is tokenized. `finish`: None until the
    answer has come to an end.
    """

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._start = time.perf_counter()
        self._first = self._last = 0.0
        self.prompt_tokens: int | None = None
        self.tokens = 0
        self.cached_tokens = 0
        self.finish: Finish | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._metrics is not None:
            self._count(self._metrics, self.finish.reason if self.finish else _outcome(error))

    def token(self, event: Token) -> None:
        """Take in a token that has just come."""
        self._last = time.perf_counter()
        self.tokens += 1
        if self.tokens > 1:
            return
        self._first = self._last
        self.cached_tokens = event.cached_tokens
        if self._metrics is not None:
            self._metrics.first_token_seconds.observe(self._first - self._start)
            self._metrics.queue_seconds.observe(event.queue_time)

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
