"""An engine that lets go of its GPU while nobody asks, and comes back for the first who does.

Not vLLM's sleep mode, which keeps the process and moves the weights to the host: here the process ends, so that all of
the GPU's memory is free, the CUDA context's included. Loading it again is what a start is, with the files most likely
still in the page cache.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from msgspec.structs import replace

from service.engine.admission import RETRY_LEAST, RETRY_MOST
from service.engine.base import (
    EngineInfo,
    EngineState,
    EngineStats,
    EngineStatus,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    Token,
)
from service.engine.client import EngineClient
from service.errors import EngineFailed

logger = logging.getLogger(__name__)

MakeClient = Callable[[float | None], EngineClient]
"""Makes the client of a new engine process. The argument: seconds that loading took the one before; None: none was."""

LONGEST_LOOK = 1.0
"""Seconds between two looks at whether somebody asks."""


class SleepOnIdle:
    """An Engine whose process ends after `idle_seconds` without a request and is started again for the next one.

    Who comes meanwhile waits; of more than can run at once, `max_queue`. The prefix cache does not outlive a sleep. An
    engine that cannot be woken has failed.
    """

    def __init__(self, make: MakeClient, idle_seconds: float, max_queue: int) -> None:
        self._make = make
        self._idle_seconds = idle_seconds
        self._max_queue = max_queue
        self._client = make(None)
        self._info: EngineInfo | None = None
        self._woken_at = 0.0  # when the latest waking began
        self._past_restarts = 0
        self._used = 0.0
        self._waiting = 0
        self._state = EngineState.READY  # READY while the client speaks for itself; else ASLEEP or WAKING
        self._wanted = asyncio.Event()
        self._awake = asyncio.Event()
        self._life: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        """The latest snapshot; while asleep or waking, of what was loaded and of who waits.

        An engine that dies while it wakes is one that restarts, like any other: who comes then is not sent here.
        """
        inner = self._client.status
        restarts = self._past_restarts + inner.restarts
        if self._state is EngineState.ASLEEP:
            return self._with_waiting(EngineState.ASLEEP, "the next request wakes it", restarts)
        if self._state is EngineState.WAKING and inner.state in {EngineState.STARTING, EngineState.LOADING}:
            return self._with_waiting(EngineState.WAKING, inner.reason, restarts)
        return replace(inner, restarts=restarts)

    def _with_waiting(self, state: EngineState, reason: str, restarts: int) -> EngineStatus:
        stats = EngineStats(waiting=self._waiting)
        return EngineStatus(state=state, reason=reason, info=self._info, stats=stats, restarts=restarts)

    @property
    def open_requests(self) -> int:
        """Requests whose Finish has not come yet."""
        return self._client.open_requests + self._waiting

    async def start(self) -> None:
        """Start awake. Raises EngineFailed as the client does."""
        if self._life is None:
            await self._client.start()
            self._become(EngineState.READY)
            self._life = asyncio.create_task(self._live())

    def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Events of one request, as the client's; the first may have to wait until the engine is awake."""
        self._used = time.monotonic()
        return self._client.submit(request) if self._state is EngineState.READY else self._after_waking(request)

    async def stop(self) -> None:
        """End the process, if there is one; who still waits for it is told that it was stopped."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        await self._client.stop()
        self._become(EngineState.READY)  # its client speaks for itself, and refuses

    async def _live(self) -> None:
        """Sleep and wake by turns, until a waking fails: then the client says why."""
        try:
            while True:
                await self._fall_asleep()
                await self._wanted.wait()
                await self._wake()
        except EngineFailed as error:
            logger.error("the engine cannot be woken: %s", error.message)
            self._become(EngineState.READY)

    async def _fall_asleep(self) -> None:
        """Wait until nobody has asked for long enough, then end the process."""
        left = self._idle_left()
        while left > 0:
            await asyncio.sleep(min(left, LONGEST_LOOK))
            left = self._idle_left()
        self._info = self._client.status.info
        self._become(EngineState.ASLEEP)
        logger.info("the engine goes to sleep: no request for %g s", self._idle_seconds)
        await self._client.stop()

    async def _wake(self) -> None:
        self._become(EngineState.WAKING)
        self._woken_at = time.monotonic()
        self._past_restarts += self._client.status.restarts
        self._client = self._make(self._load_seconds)
        await self._client.start()
        logger.info("the engine is awake again after %.1f s", time.monotonic() - self._woken_at)
        self._become(EngineState.READY)

    @property
    def _load_seconds(self) -> float:
        """What loading took the engine that fell asleep."""
        return sum(self._info.startup_seconds.values()) if self._info else 0.0

    def _idle_left(self) -> float:
        """Seconds until the engine may sleep. One that is stuck or restarting has something else to do."""
        if self._client.open_requests or self._client.status.state is not EngineState.READY:
            self._used = time.monotonic()
        return self._used + self._idle_seconds - time.monotonic()

    def _become(self, state: EngineState) -> None:
        self._state = state
        if state is EngineState.READY:
            self._used = time.monotonic()
            self._wanted.clear()
            self._awake.set()
        else:
            self._awake.clear()

    async def _after_waking(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        began = time.monotonic()
        if refused := await self._wait(request):
            yield refused
            return
        waited = time.monotonic() - began
        async with aclosing(self._client.submit(request)) as events:
            async for event in events:
                if waited and isinstance(event, Token):  # the first: it tells how long the request queued
                    event, waited = replace(event, queue_time=event.queue_time + waited), 0.0
                yield event

    async def _wait(self, request: GenerationRequest) -> Finish | None:
        """Wake the engine and wait for it; the end of a request that found no room to wait in, or waited too long."""
        if self._waiting >= self._most_waiting:
            return self._no_room(request.id)
        self._waiting += 1
        self._wanted.set()
        try:
            async with asyncio.timeout(request.deadline - time.monotonic()):
                await self._awake.wait()
        except TimeoutError:
            return Finish(request.id, FinishReason.DEADLINE, "the deadline of the request passed", queued=True)
        finally:
            self._waiting -= 1
        return None

    @property
    def _most_waiting(self) -> int:
        """Those that can run at once do not count as waiting, here as there."""
        return self._max_queue + (self._info.max_running if self._info else 0)

    def _no_room(self, request_id: str) -> Finish:
        # While the old process ends, a waking has not begun.
        spent = time.monotonic() - self._woken_at if self._state is EngineState.WAKING else 0.0
        back = min(max(math.ceil(self._load_seconds - spent), RETRY_LEAST), RETRY_MOST)
        message = (
            f"the engine is waking up, and {self._waiting} requests wait for it, as many as it runs at once and "
            f"max_queue (INTERNLM_MAX_QUEUE) allows: {self._max_queue}; come back in {back} s"
        )
        return Finish(request_id, FinishReason.REJECTED, message, back)
