"""The native engine's heart: asks the scheduler for steps, has the runner compute them, hands out the tokens."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from service.engine.admission import Limits
from service.engine.base import (
    Allowed,
    EngineConfig,
    EngineInfo,
    EngineStats,
    Event,
    GenerationRequest,
    GpuMemory,
    Matcher,
    StepFailed,
)
from service.engine.kv_cache import BlockPool
from service.engine.scheduler import Scheduler
from service.engine.steps.pace import PrefillPace
from service.engine.steps.plan import OutOfMemory, Pending, Runner, Sequence, StepPlan
from service.errors import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A step that was begun, and when."""

    plan: StepPlan
    pending: Pending
    begun: float


class NativeCore:
    """`Core` out of a scheduler and a runner.

    `depth` steps stay in flight after `step`: 0 waits for each step (CPU), 1 launches the next step before it waits
    for the last one's tokens (GPU), so that the device computes while the host handles them. `pace` bounds what
    prompts may add to the steps of running streams; None: nothing but `config.step_tokens` does, which is settled here.
    `allowed` tells what answers with a grammar may go on with. That follows from their last tokens, so a step with such
    an answer is begun ahead as any other, but samples when the tokens before it are known.
    """

    def __init__(
        self,
        runner: Runner,
        info: EngineInfo,
        config: EngineConfig,
        *,
        depth: int = 0,
        clock: Callable[[], float] = time.monotonic,
        gpu_memory: Callable[[], list[GpuMemory]] = list,
        pace: PrefillPace | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        pool = BlockPool(runner.num_blocks, runner.block_size, prefix_cache=config.prefix_cache)
        limits = Limits(
            max_context=info.max_context,
            max_running=runner.max_running,
            max_queue=config.max_queue,
            step_tokens=config.step_tokens,
            cache_tokens=pool.total * pool.block_size,
            vocab_size=info.vocab_size,
        )
        self._info = info
        self._runner = runner
        self._depth = depth
        self._clock = clock
        self._gpu_memory = gpu_memory
        self._allowed = allowed
        self._scheduler = Scheduler(limits, pool, pace)
        self._in_flight: deque[_InFlight] = deque()
        self._lost: list[Sequence] = []  # a step of theirs was lost: their slots' contents are undefined
        self._finished = 0.0  # when the last step's tokens came

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def idle(self) -> bool:
        """True when a step would have nothing to do."""
        return self._scheduler.idle and not self._in_flight

    def stats(self) -> EngineStats:
        return msgspec.structs.replace(self._scheduler.stats(), gpus=self._gpu_memory())

    def add(self, request: GenerationRequest, matcher: Matcher | None = None) -> list[Event]:
        """Take a request in, with its compiled grammar if it has one. Returns [] or its Finish with reason REJECTED."""
        return self._scheduler.add(request, self._clock(), matcher)

    def cancel(self, request_id: str) -> list[Event]:
        """Stop a request and free what it holds. Returns its Finish, or [] if it is unknown or has ended."""
        return self._scheduler.cancel(request_id, self._clock())

    def fail(self, message: str) -> list[Event]:
        """End every open request with ERROR; steps in flight are given up. The core can go on with new requests."""
        self._in_flight.clear()
        return self._scheduler.fail(message, self._clock())

    def fail_newest(self, message: str) -> list[Event]:
        """End the request that was admitted last with ERROR, so that the others can go on."""
        return self._scheduler.fail_newest(message, self._clock())

    def step(self) -> list[Event]:
        """Begin one step, if there is work, and hand out the tokens of the oldest one in flight beyond `depth`.

        Raises StepFailed when launching or waiting fails for another reason than the device's memory.
        """
        events = self._scheduler.expire(self._clock())
        try:
            begun = self._begin(events)
            while len(self._in_flight) > (self._depth if begun else 0):
                events += self._collect()
            if self.idle:
                self._scheduler.check_idle()
        except Exception as error:
            message = f"the engine broke in a step: {type(error).__name__}: {first_line(error)}"
            unfinished = list(self._in_flight)
            raise StepFailed(message, events + self.fail(message), unfinished) from error
        return events

    def _begin(self, events: list[Event]) -> bool:
        """Begin the next step; False when there is nothing to compute, or no memory to compute it in. Adds to `events`,
        which are not lost then when something breaks after them."""
        plan = self._scheduler.plan(self._clock())
        if not plan.chunks and not plan.decodes:
            return False
        waits = bool(self._in_flight) and any(sequence.matcher for sequence in plan.sampled)
        try:
            self._fill_slots(plan)
            pending = self._runner.begin(plan)
            if not waits:
                self._sample(plan, pending)
        except OutOfMemory as error:
            self._scheduler.withdraw(plan)
            self._scheduler.shrink(plan)
            logger.error("out of memory in a step of %s prompts and %s decodes", len(plan.chunks), len(plan.decodes))
            events += self.fail_newest(f"the device ran out of memory: {error}")
            return False
        self._scheduler.launched(plan)
        self._in_flight.append(_InFlight(plan, pending, self._clock()))
        if waits:
            self._sample_last(events)
        return True

    def _sample_last(self, events: list[Event]) -> None:
        """Hand out the tokens of all steps in flight but the last one, which then samples what may follow them."""
        while len(self._in_flight) > 1:
            events += self._collect()
        for step in list(self._in_flight):  # none, if one before it was lost
            try:
                self._sample(step.plan, step.pending)
            except OutOfMemory as error:
                self._in_flight.clear()
                events += self._recover(step, error)

    def _sample(self, plan: StepPlan, pending: Pending) -> None:
        """Have a step's tokens drawn, each of what may follow. Raises OutOfMemory."""
        kept = [sequence for sequence in plan.sampled if sequence.matcher and not sequence.ended]
        if kept:
            assert self._allowed is not None, "an answer with a grammar needs what it may go on with"
            allowed = self._allowed([sequence.matcher for sequence in kept])
            self._runner.restrict([sequence.slot for sequence in kept], allowed)
        pending.sample()

    def _fill_slots(self, plan: StepPlan) -> None:
        """Of sequences that begin, and of those whose slots are not what they were. Raises OutOfMemory."""
        self._lost = [sequence for sequence in self._lost if not sequence.ended]
        begun = [chunk.sequence for chunk in plan.chunks if chunk.is_first]
        for sequence in dict.fromkeys([*begun, *self._lost]):
            self._runner.admit(sequence)
        self._lost = []

    def _collect(self) -> list[Event]:
        """Wait for the oldest step in flight and hand out its tokens."""
        step = self._in_flight.popleft()
        try:
            tokens = step.pending.tokens()
        except OutOfMemory as error:
            return self._recover(step, error)
        expected = len(step.plan.sampled)
        if len(tokens) != expected:
            raise RuntimeError(f"a step gave {len(tokens)} tokens, {expected} were due")
        now = self._clock()
        # Steps run one after the other: this one began when it was queued, or when the one before was done.
        self._scheduler.measured(step.plan, now - max(step.begun, self._finished))
        self._finished = now
        return self._scheduler.commit(step.plan, tokens, step.pending.logprobs(), now)

    def _recover(self, step: _InFlight, error: OutOfMemory) -> list[Event]:
        """A step that had been launched lacked memory: it and all behind it are lost and computed again; without the
        newest request if that happened to one of its prompts, or decodes, before."""
        self._scheduler.shrink(step.plan)
        lost = [step, *self._in_flight]
        self._in_flight.clear()
        logger.error("out of memory in a launched step; %s steps are computed again", len(lost))
        hit = [part.sequence for part in step.plan.chunks or step.plan.decodes]
        is_repeated = any(sequence.was_lost for sequence in hit)
        events = self.fail_newest(f"the device ran out of memory: {error}") if is_repeated else []
        for sequence in hit:
            sequence.was_lost = True
        self._lost = self._scheduler.lose([each.plan for each in lost])
        return events
