"""The engine as the web side sees it: a process that is found or started, watched, and started again when it dies."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.engine.base import (
    EngineConfig,
    EngineInfo,
    EngineState,
    EngineStats,
    EngineStatus,
    Event,
    Finish,
    GenerationRequest,
)
from service.engine.process import wire
from service.engine.process.lifetime import EXIT_TIMEOUT, WORKER, find_or_start
from service.engine.process.link import Link
from service.engine.process.load_watch import LoadWatch, limit_after
from service.engine.process.restarts import RestartPolicy
from service.engine.process.run_dir import forget
from service.engine.process.streams import Streams, refusal
from service.engine.process.watchdog import Watchdog
from service.errors import EngineFailed, ServiceError

logger = logging.getLogger(__name__)

STOP_ATTEMPTS = 3
"""How often an engine that does not stop is looked at before it is left to the kernel."""


@dataclass(frozen=True)
class Patience:
    """How long the client waits for what, in seconds, and how many starts in vain it bears.

    An engine that is silent for `heartbeat` is stuck; one with nobody connected ends after `orphan`. One that loads may
    be silent for longer, `silent_load`: while an import maps gigabytes from a slow disk, no other thread runs. A load
    after the first gets at least `reload` seconds.
    """

    heartbeat: float = 10.0
    silent_load: float = 180.0
    reload: float = 600.0
    orphan: float = 20.0
    exit: float = EXIT_TIMEOUT
    first_restart: float = 0.5
    longest_restart: float = 30.0
    starts: int = 5


class EngineClient:
    """An Engine in a process of its own, joined by a socket in `run_dir`. Lives on one event loop.

    When the process dies, every open request gets a Finish with reason ERROR and a new process is started. A step
    that takes longer than `config.step_timeout` makes it STUCK; one of twice that time gets it killed, as does a load
    that gets nowhere. `first_load`: seconds that loading took a predecessor, which this one's is measured by.
    """

    def __init__(
        self,
        config: EngineConfig,
        run_dir: Path,
        *,
        patience: Patience = Patience(),
        command: Sequence[str] = WORKER,
        first_load: float | None = None,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._patience = patience
        self._policy = RestartPolicy(patience.first_restart, patience.longest_restart, patience.starts)
        self._command = command
        self._link: Link | None = None
        self._info: EngineInfo | None = None
        self._end: tuple[EngineState, str] | None = None
        self._why_down = ""
        self._first_load = first_load
        self._restarts = 0
        self._settled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._streams = Streams(self._pass_on, self._cancel)

    @property
    def status(self) -> EngineStatus:
        """The latest snapshot."""
        state, reason = self._state()
        stats = self._link.stats if self._link else EngineStats()
        return EngineStatus(state=state, reason=reason, info=self._info, stats=stats, restarts=self._restarts)

    @property
    def open_requests(self) -> int:
        """Requests whose Finish has not come yet."""
        return len(self._streams)

    async def start(self) -> None:
        """Find or start the process and return once it can generate.

        Raises EngineFailed when the configuration cannot work, or after several starts in vain.
        """
        if self._life is None:
            self._life = asyncio.create_task(self._live())
        await self._settled.wait()
        if self._end is not None:
            raise EngineFailed(self._end[1])

    def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Events of one request; a Finish with reason ERROR at once while the engine is not ready."""
        return self._streams.follow(request)

    async def stop(self) -> None:
        """End the process, unless another web worker uses it, and wait for that; kills one that does not end."""
        self._stopping.set()
        if self._link is not None:
            self._link.send(wire.Stop())
        if self._life is not None:
            await self._end_life(self._life)
        self._finish(EngineState.STOPPED, "the engine was stopped")

    async def _end_life(self, life: asyncio.Task[None]) -> None:
        # More than once: the process may only just be starting, and then nobody is joined to it yet.
        patience = self._patience.exit
        for _ in range(STOP_ATTEMPTS):
            _, late = await asyncio.wait([life], timeout=patience)
            if late and self._link is not None:
                self._link.kill("the engine process did not stop when it was told to")
            patience = EXIT_TIMEOUT  # a busy machine takes a moment to act on a kill
        life.cancel()
        await asyncio.wait([life])

    def _state(self) -> tuple[EngineState, str]:
        if self._end is not None:
            return self._end
        link = self._link
        if link is not None and link.joined and link.killed:  # for more than a moment only if it hangs in the kernel
            return EngineState.STUCK, link.why
        if link is not None and (link.why or not link.joined):  # having said why, a process takes a moment to be gone
            return EngineState.RESTARTING, link.why or "the engine process ended"
        if link is not None and link.info is not None:
            complaint = link.watchdog.complaint(time.monotonic())
            return (EngineState.STUCK, complaint) if complaint else (EngineState.READY, "")
        phase = link.phase if link else ""
        if self._why_down:
            return EngineState.RESTARTING, f"{self._why_down}; {phase}" if phase else self._why_down
        return (EngineState.LOADING if link else EngineState.STARTING), phase

    async def _live(self) -> None:
        """One engine process after the other, until there is no point in another."""
        try:
            while not self._stopping.is_set():
                link = await self._connect()
                why = await self._follow(link)
                if self._stopping.is_set() or not await self._may_restart(link, why):
                    return
        except ServiceError as error:
            logger.error("the engine cannot be run: %s", error.message)
            self._finish(EngineState.FAILED, error.message)
        except Exception as error:
            logger.exception("the engine cannot be run")
            self._finish(EngineState.FAILED, str(error))

    async def _connect(self) -> Link:
        found = await asyncio.to_thread(
            find_or_start, self._config, self._run_dir, self._command, self._patience.orphan
        )
        now, patience = time.monotonic(), self._patience
        watchdog = Watchdog(self._config.step_timeout, patience.heartbeat, heard=now)
        load = LoadWatch(now, patience.silent_load, limit_after(self._first_load, patience.reload))
        link = Link(
            found,
            watchdog,
            load,
            on_ready=self._ready,
            on_events=self._streams.deliver,
            on_tick=self._tick,
            on_gone=self._streams.fail_all,
        )
        await link.open()
        return link

    async def _follow(self, link: Link) -> str:
        """Be joined to a process until it ends; returns why it did."""
        self._link = link
        if self._stopping.is_set():
            link.send(wire.Stop())
        try:
            why = self._why_down = await link.run()
        finally:
            self._link = None
        self._streams.fail_all(why)
        if not link.kept:
            await asyncio.to_thread(forget, self._run_dir, link.pid)
        return why

    async def _may_restart(self, link: Link, why: str) -> bool:
        """Wait as long as the policy says; False when the engine is beyond repair or was told to stop."""
        served = time.monotonic() - link.ready_at if link.info is not None else None
        delay = self._policy.delay_after_death(served) if link.mendable else None
        if delay is None:
            logger.error("the engine failed for good: %s", why)
            self._finish(EngineState.FAILED, why)
            return False
        logger.error("the engine died and starts again in %.1f s: %s", delay, why)
        self._restarts += 1
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    def _ready(self) -> None:
        assert self._link is not None
        self._info, self._why_down = self._link.info, ""
        self._first_load = self._first_load or self._link.load_seconds
        self._settled.set()

    def _finish(self, state: EngineState, reason: str) -> None:
        self._end = self._end or (state, reason)  # a failure stays one when the engine is stopped afterwards
        self._streams.fail_all(reason)
        self._settled.set()

    def _tick(self) -> None:
        self._streams.expire(time.monotonic())

    def _pass_on(self, request: GenerationRequest) -> Finish | None:
        status = self.status
        if self._link is None or status.state is not EngineState.READY:
            return refusal(request, status)
        self._link.send(wire.Submit(request))
        return None

    def _cancel(self, request_id: str) -> None:
        if self._link is not None:
            self._link.send(wire.Cancel(request_id))
