"""The step loop: takes requests and cancels in, steps the core, hands its events on. One thread, no polling."""

import queue
import time
from collections.abc import Callable

from service.engine.base import Core, EngineStats, Event, GenerationRequest, StepFailed

STATS_INTERVAL = 0.1
"""Seconds between two readings of the core's statistics under load; going idle always takes one."""

Emit = Callable[[list[Event], EngineStats | None], None]


class StepLoop:
    """Drives one Core on the thread that calls `run`; every other method may be called from any thread.

    `emit` gets the events of one step at once, and fresh statistics now and then. Only the loop touches the core.
    """

    def __init__(self, core: Core, emit: Emit) -> None:
        self._core = core
        self._emit = emit
        self._intake: queue.SimpleQueue[GenerationRequest | str | None] = queue.SimpleQueue()
        self._step_started: float | None = None
        self._stats_taken = 0.0

    @property
    def step_age(self) -> float:
        """Seconds the step that runs now has taken so far; 0 between steps."""
        started = self._step_started
        return 0.0 if started is None else time.monotonic() - started

    def submit(self, request: GenerationRequest) -> None:
        """Hand a request in; it is added before the next step."""
        self._intake.put(request)

    def cancel(self, request_id: str) -> None:
        """Cancel a request handed in before; takes effect before the next step."""
        self._intake.put(request_id)

    def stop(self) -> None:
        """Let `run` return after the step that runs now. Open requests are left to the caller."""
        self._intake.put(None)

    def run(self) -> None:
        """Step until `stop`; raises whatever the core raises."""
        self._publish([])
        while self._take_in():
            if not self._core.idle:
                self._publish(self._step())

    def _take_in(self) -> bool:
        """Work off the intake, waiting for it when there is nothing else to do; False once `stop` was called."""
        while not self._intake.empty() or self._core.idle:
            message = self._intake.get()
            if message is None:
                return False
            self._publish(self._core.cancel(message) if isinstance(message, str) else self._core.add(message))
        return True

    def _step(self) -> list[Event]:
        self._step_started = time.monotonic()
        try:
            return self._core.step()
        except StepFailed as failure:
            self._emit(failure.events, None)
            raise
        finally:
            self._step_started = None

    def _publish(self, events: list[Event]) -> None:
        stats = self._fresh_stats()
        if events or stats:
            self._emit(events, stats)

    def _fresh_stats(self) -> EngineStats | None:
        now = time.monotonic()
        if now - self._stats_taken < STATS_INTERVAL and not self._core.idle:
            return None
        self._stats_taken = now
        return self._core.stats()
