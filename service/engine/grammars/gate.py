"""Requests whose grammars are being compiled, before a core: it never sees one that is not ready."""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

import msgspec

from service.engine.admission import RETRY_UNMEASURED
from service.engine.base import (
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    Matcher,
    MatchingCore,
    StepFailed,
)
from service.engine.grammars.forced import ForcedTokens
from service.errors import first_line

PATIENCE = 0.01
"""Seconds that a step waits for a grammar when nothing else is to be done; cancels wait as long."""

Compile = Callable[[str], Future[Matcher]]


class _Held(NamedTuple):
    """A request, and its grammar to come."""

    request: GenerationRequest
    matcher: Future[Matcher]


class GrammarGate:
    """A `Core` before a core: holds requests with a grammar until it is compiled, as many as that takes in at once."""

    def __init__(
        self,
        core: MatchingCore,
        begin: Compile,
        max_queue: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._begin = begin
        self._most = max_queue + core.info.max_running
        self._clock = clock
        self._held: dict[str, _Held] = {}

    @property
    def info(self) -> EngineInfo:
        return self._core.info

    @property
    def idle(self) -> bool:
        """True when a step would have nothing to do."""
        return self._core.idle and not self._held

    def stats(self) -> EngineStats:
        stats = self._core.stats()
        return msgspec.structs.replace(stats, waiting=stats.waiting + len(self._held))

    def add(self, request: GenerationRequest) -> list[Event]:
        """Take a request in. Returns [] or its Finish with reason REJECTED."""
        if request.id in self._held:
            return [_rejected(request, f"a request with the id {request.id!r} is open already")]
        if request.forced:
            assert not request.grammar, "whoever forces tokens asks for no grammar"
            return self._core.add(request, ForcedTokens(request.forced))
        if not request.grammar:
            return self._core.add(request)
        if len(self._held) >= self._most:
            message = f"{self._most} requests wait for their grammars, no more may; come back in {RETRY_UNMEASURED} s"
            return [_rejected(request, message, RETRY_UNMEASURED)]
        self._held[request.id] = _Held(request, self._begin(request.grammar))
        return []

    def cancel(self, request_id: str) -> list[Event]:
        """Stop a request. Returns its Finish, or [] if it is unknown or has ended."""
        if request_id in self._held:
            return [self._end(request_id, FinishReason.CANCELLED)]
        return self._core.cancel(request_id)

    def step(self) -> list[Event]:
        """Hand on what is ready, and one step of the core. Raises StepFailed as that does, and ends what is held."""
        events = self._expire()
        if self._held and self._core.idle:
            wait([held.matcher for held in self._held.values()], PATIENCE, FIRST_COMPLETED)
        for held in [held for held in self._held.values() if held.matcher.done()]:
            events += self._hand_on(held)
        if self._core.idle:
            return events
        try:
            return events + self._core.step()
        except StepFailed as failure:
            ended = [self._end(request_id, FinishReason.ERROR, str(failure)) for request_id in list(self._held)]
            failure.events = [*events, *failure.events, *ended]
            raise

    def _expire(self) -> list[Event]:
        now = self._clock()
        late = [held.request.id for held in self._held.values() if held.request.deadline <= now]
        message = "the deadline of the request passed"
        return [self._end(request_id, FinishReason.DEADLINE, message) for request_id in late]

    def _hand_on(self, held: _Held) -> list[Event]:
        """To the core; a grammar that can't be kept to ends its request."""
        del self._held[held.request.id]
        if error := held.matcher.exception():
            message = f"its grammar cannot be compiled: {type(error).__name__}: {first_line(error)}"
            return [Finish(held.request.id, FinishReason.ERROR, message)]
        matcher = held.matcher.result()
        if matcher.problem:
            return [Finish(held.request.id, FinishReason.REJECTED, matcher.problem, of_grammar=True)]
        return self._core.add(held.request, matcher)

    def _end(self, request_id: str, reason: FinishReason, message: str = "") -> Finish:
        self._held.pop(request_id).matcher.cancel()
        return Finish(request_id, reason, message, queued=reason is FinishReason.DEADLINE)


def _rejected(request: GenerationRequest, message: str, retry_after: int = 0) -> Finish:
    return Finish(request.id, FinishReason.REJECTED, message, retry_after)
