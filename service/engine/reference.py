"""The reference engine: transformers' `generate()`, one request at a time. Oracle for tokens, baseline for speed.

Unlike a bare `generate()` call it samples as the sampling values say (transformers ignores them unless `do_sample`
is set), and stops between two tokens when a request is cancelled or its deadline passes.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from service.engine.admission import CompletionRate, Limits, queue_full, refusal
from service.engine.base import (
    Allowed,
    EngineConfig,
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    GpuMemory,
    Matcher,
    StepFailed,
    Token,
)
from service.engine.generate import GenerateCall, KeepsToGrammar


class _Waiting(NamedTuple):
    """A request, since when it waits, and its compiled grammar."""

    request: GenerationRequest
    arrival: float
    matcher: Matcher | None


class _Running:
    """The request that is being answered."""

    def __init__(self, waiting: _Waiting, queue_time: float, generation: GenerateCall) -> None:
        self.request = waiting.request
        self.matcher = waiting.matcher
        self.queue_time = queue_time
        self.generation = generation
        self.tokens = 0

    @property
    def problem(self) -> str:
        """Why the answer can't be gone on with; empty while it can."""
        return self.matcher.problem if self.matcher else ""


class ReferenceCore:
    """`Core` over a transformers model: requests wait in order, one runs, a step yields its next token."""

    def __init__(
        self,
        model: Any,
        info: EngineInfo,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        gpu_memory: Callable[[], list[GpuMemory]] = list,
        allowed: Allowed | None = None,
    ) -> None:
        self._model = model
        self._info = info
        self._limits = Limits(
            max_context=info.max_context,
            max_running=1,
            max_queue=config.max_queue,
            step_tokens=config.step_tokens,
            cache_tokens=info.max_context,
            vocab_size=info.vocab_size,
        )
        self._clock = clock
        self._gpu_memory = gpu_memory
        self._allowed = allowed
        self._waiting: deque[_Waiting] = deque()
        self._running: _Running | None = None
        self._rate = CompletionRate()
        self._prompt_tokens = self._generation_tokens = self._steps = 0

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def idle(self) -> bool:
        """True when a step would have nothing to do."""
        return self._running is None and not self._waiting

    def stats(self) -> EngineStats:
        return EngineStats(
            running=int(self._running is not None),
            waiting=len(self._waiting),
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            steps=self._steps,
            gpus=self._gpu_memory(),
        )

    def add(self, request: GenerationRequest, matcher: Matcher | None = None) -> list[Event]:
        """Take a request in, with its compiled grammar if it has one. Returns [] or its Finish with reason REJECTED."""
        problem = refusal(request, self._limits)
        if request.id in self._open():
            problem = f"a request with the id {request.id!r} is open already"
        if problem:
            return [Finish(request.id, FinishReason.REJECTED, problem)]
        # Whatever can run at once doesn't count as waiting.
        if len(self._open()) > self._limits.max_queue:
            retry_after = self._rate.retry_after(len(self._waiting), self._clock())
            return [queue_full(request.id, len(self._waiting), self._limits, retry_after)]
        if self.idle:
            self._rate.resume(self._clock())
        self._waiting.append(_Waiting(request, self._clock(), matcher))
        return []

    def cancel(self, request_id: str) -> list[Event]:
        """Stop a request. Returns its Finish, or [] if it is unknown or has ended."""
        return [self._end(request_id, FinishReason.CANCELLED)] if request_id in self._open() else []

    def step(self) -> list[Event]:
        """Wait for the running request's next token, or start the next request and wait for its first.

        Raises StepFailed, with a Finish for every open request, when `generate()` broke.
        """
        now = self._clock()
        late = [request_id for request_id, request in self._open().items() if request.deadline <= now]
        events: list[Event] = [
            self._end(request_id, FinishReason.DEADLINE, "the deadline of the request passed") for request_id in late
        ]
        if self._running is None and self._waiting:
            self._start()
        if self._running is None:
            return events
        self._steps += 1
        try:
            return events + self._advance(self._running)
        except Exception as error:
            message = f"the engine broke in a step: {type(error).__name__}: {error}"
            ended = [self._end(request_id, FinishReason.ERROR, message) for request_id in self._open()]
            raise StepFailed(message, [*events, *ended]) from error

    def _start(self) -> None:
        waiting = self._waiting.popleft()
        self._prompt_tokens += len(waiting.request.prompt_ids)
        assert self._allowed or not waiting.matcher, "an answer with a grammar needs what it may go on with"
        kept_to = [KeepsToGrammar(waiting.matcher, self._allowed)] if waiting.matcher and self._allowed else []
        generation = GenerateCall(self._model, waiting.request, kept_to)
        self._running = _Running(waiting, self._clock() - waiting.arrival, generation)

    def _advance(self, running: _Running) -> list[Event]:
        request, (token, logprobs) = running.request, running.generation.next()
        self._generation_tokens += 1
        running.tokens += 1
        queue_time = running.queue_time if running.tokens == 1 else 0.0
        events: list[Event] = [Token(request.id, token, queue_time, logprobs=logprobs)]
        if running.problem:
            events.append(self._end(request.id, FinishReason.REJECTED, running.problem))
        elif token in request.stop_ids and running.tokens > len(request.forced):
            events.append(self._end(request.id, FinishReason.STOP))
        elif running.tokens == request.max_new_tokens:
            events.append(self._end(request.id, FinishReason.LENGTH))
        return events

    def _open(self) -> dict[str, GenerationRequest]:
        requests = [self._running.request] if self._running else []
        return {request.id: request for request in [*requests, *(waiting.request for waiting in self._waiting)]}

    def _end(self, request_id: str, reason: FinishReason, message: str = "") -> Finish:
        running = self._running is not None and self._running.request.id == request_id
        queued = not running and reason is FinishReason.DEADLINE
        of_grammar = running and reason is FinishReason.REJECTED
        if self._running is not None and running:
            self._running.generation.close()
            self._running = None
        else:
            self._waiting = deque(entry for entry in self._waiting if entry.request.id != request_id)
        if reason is not FinishReason.ERROR:
            self._rate.count(self._clock())
        return Finish(request_id, reason, message, queued=queued, of_grammar=of_grammar)
