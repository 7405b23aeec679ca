"""An engine without a model: it echoes the prompt, token by token, with the real one's queue, batch and failures.

For tests, and for trying the API, the chart, dashboards and alerts on a machine without a GPU.
"""

import math
import threading
import time
from collections import deque
from dataclasses import dataclass

from service.engine.admission import CompletionRate, Limits, queue_full, refusal
from service.engine.base import (
    EngineConfig,
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    StepFailed,
    Token,
)
from service.engine.config import INTERNLM3_8B
from service.engine.defaults import RUNNING_ON_CPU


@dataclass(frozen=True)
class FakeScript:
    """How fast the fake is and how it fails. Steps count from 1; 0 means never. Durations in seconds.

    A hang lasts until `FakeCore.release`; that loading took `load_seconds` is only said.
    """

    load_seconds: float = 0.0
    step_seconds: float = 0.0
    crash_at_step: int = 0
    hang_at_step: int = 0


@dataclass(slots=True)
class _Sequence:
    """One request: what it will say, and how far it got."""

    request: GenerationRequest
    arrival: float
    answer: list[int]
    said: int = 0
    queue_time: float = 0.0

    def next_token(self) -> int:
        # Past its answer (there is no stop id) it starts anew: only max_new_tokens ends it.
        token = self.answer[self.said % len(self.answer)]
        self.said += 1
        return token


def echo(request: GenerationRequest) -> list[int]:
    """The fake's answer: the prompt's ids but for stop ids, then the first stop id, if there is one."""
    return [token for token in request.prompt_ids if token not in request.stop_ids] + request.stop_ids[:1]


def _no_echo(request: GenerationRequest) -> str | None:
    """What is asked for that an echo has not."""
    if request.grammar:
        return "the fake engine only echoes: no answer of it keeps to a grammar"
    return None if request.logprobs is None else "the fake engine only echoes: its tokens have no probabilities"


class FakeCore:
    """A Core that echoes. One token per running request and step; first come, first served."""

    def __init__(self, config: EngineConfig, script: FakeScript = FakeScript()) -> None:
        self._script = script
        self._block_size = config.block_size
        self._limits = Limits(
            max_context=config.max_context,
            max_running=config.max_running or RUNNING_ON_CPU,
            max_queue=config.max_queue,
            step_tokens=config.step_tokens,
            cache_tokens=config.max_context,
            vocab_size=INTERNLM3_8B.vocab_size,
        )
        self._rate = CompletionRate()
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[str, _Sequence] = {}
        self._counts = _Counts()
        self._released = threading.Event()

    @property
    def info(self) -> EngineInfo:
        """What it would say if it had loaded something."""
        return EngineInfo(
            kind="fake",
            device="cpu",
            dtype="none",
            max_context=self._limits.max_context,
            max_running=self._limits.max_running,
            vocab_size=INTERNLM3_8B.vocab_size,
            startup_seconds={"load": self._script.load_seconds},
        )

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self._waiting and not self._running

    def add(self, request: GenerationRequest) -> list[Event]:
        """Queue a request; a Finish with reason REJECTED when it can never fit, asks for more than an echo, or the
        queue is full."""
        if problem := refusal(request, self._limits) or _no_echo(request):
            return [Finish(request.id, FinishReason.REJECTED, problem)]
        now, waiting = time.monotonic(), len(self._waiting) + len(self._running) - self._limits.max_running
        if waiting >= self._limits.max_queue:
            return [queue_full(request.id, waiting, self._limits, self._rate.retry_after(waiting, now))]
        if self.idle:
            self._rate.resume(now)
        self._waiting.append(_Sequence(request, now, echo(request)))
        return []

    def cancel(self, request_id: str) -> list[Event]:
        """Forget a request, running or waiting."""
        for sequence in self._open():
            if sequence.request.id == request_id:
                return [self._end(sequence, FinishReason.CANCELLED)]
        return []

    def step(self) -> list[Event]:
        """Say one more token of each running request."""
        self._counts.steps += 1
        self._misbehave()
        time.sleep(self._script.step_seconds)
        events = self._expire(time.monotonic())
        self._admit(time.monotonic())
        for sequence in list(self._running.values()):
            events += self._advance(sequence)
        return events

    def stats(self) -> EngineStats:
        """Counts; a KV block is reserved as the real engine would reserve it."""
        per_request = math.ceil(self._limits.max_context / self._block_size)
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_blocks_total=per_request * self._limits.max_running,
            kv_blocks_used=sum(self._blocks(sequence.request) for sequence in self._running.values()),
            prompt_tokens=self._counts.prompt_tokens,
            generation_tokens=self._counts.generation_tokens,
            steps=self._counts.steps,
        )

    def release(self) -> None:
        """End a hang the script asked for."""
        self._released.set()

    def _misbehave(self) -> None:
        if self._counts.steps == self._script.hang_at_step:
            self._released.wait()
        if self._counts.steps == self._script.crash_at_step:
            message = f"the script says: crash at step {self._counts.steps}"
            raise StepFailed(message, [self._end(s, FinishReason.ERROR, message) for s in self._open()])

    def _expire(self, now: float) -> list[Event]:
        late = [sequence for sequence in self._open() if sequence.request.deadline <= now]
        return [self._end(s, FinishReason.DEADLINE, "the deadline of the request passed") for s in late]

    def _open(self) -> list[_Sequence]:
        return [*self._running.values(), *self._waiting]

    def _end(self, sequence: _Sequence, reason: FinishReason, message: str = "") -> Finish:
        queued = self._running.pop(sequence.request.id, None) is None
        if queued:
            self._waiting.remove(sequence)
        self._rate.count(time.monotonic())
        return Finish(sequence.request.id, reason, message, queued=queued and reason is FinishReason.DEADLINE)

    def _admit(self, now: float) -> None:
        while self._waiting and len(self._running) < self._limits.max_running:
            sequence = self._waiting.popleft()
            sequence.queue_time = now - sequence.arrival
            self._running[sequence.request.id] = sequence
            self._counts.prompt_tokens += len(sequence.request.prompt_ids)

    def _advance(self, sequence: _Sequence) -> list[Event]:
        request, token = sequence.request, sequence.next_token()
        self._counts.generation_tokens += 1
        events: list[Event] = [Token(request.id, token, sequence.queue_time if sequence.said == 1 else 0.0)]
        if token in request.stop_ids:
            events.append(self._end(sequence, FinishReason.STOP))
        elif sequence.said >= request.max_new_tokens:
            events.append(self._end(sequence, FinishReason.LENGTH))
        return events

    def _blocks(self, request: GenerationRequest) -> int:
        # The last token's KV is never written.
        return math.ceil((len(request.prompt_ids) + request.max_new_tokens - 1) / self._block_size)


@dataclass(slots=True)
class _Counts:
    """Totals since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
