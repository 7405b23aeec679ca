"""One connection to one engine process, from the first message to the process's end."""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from service.engine.base import EngineInfo, EngineStats, Event
from service.engine.process import wire
from service.engine.process.lifetime import Found
from service.engine.process.load_watch import LoadWatch
from service.engine.process.watchdog import Watchdog

logger = logging.getLogger(__name__)

WATCH_INTERVAL = 0.5
"""Seconds between two looks at the watchdog."""

LAST_WORDS = 1.0
"""Seconds in which a process that has gone silent is nearly always gone and says how. One that has a GPU may take many
more to give it back, and its clients wait no longer than this."""


class Link:
    """What is known of the engine process at the other end. Lives on one event loop.

    `on_ready` is called once the engine can generate, `on_events` with the events of each step, `on_tick` now and then,
    and `on_gone` when it will say nothing more, though its process may still be there.
    """

    def __init__(
        self,
        found: Found,
        watchdog: Watchdog,
        load: LoadWatch,
        *,
        on_ready: Callable[[], None],
        on_events: Callable[[list[Event]], None],
        on_tick: Callable[[], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self.watchdog = watchdog
        self.phase = "starting the engine process"
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.ready_at = 0.0
        self.joined = False
        self.why = ""  # why it ends, as far as it is known
        self.mendable = True  # False: a new engine would end the same way
        self._found = found
        self._on_ready = on_ready
        self._on_events = on_events
        self._on_tick = on_tick
        self._on_gone = on_gone
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self.kept = False  # the engine goes on, for another web worker
        self.killed = False
        self._load = load

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._found.process.pid

    async def open(self) -> None:
        """Take the connection over; before anything else."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._found.connection)
        self.joined = True

    async def run(self) -> str:
        """Follow the engine to its end; returns why it ended."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._follow()
        finally:
            self.joined = False
            watching.cancel()
            self._writer.close()
        return self._disown() if self.kept else await self._bury()

    @property
    def load_seconds(self) -> float:
        """How long the engine took to load: a found one says so itself."""
        told = sum(self.info.startup_seconds.values()) if self.info else 0.0
        return max(told, self.ready_at - self._load.began)

    def send(self, message: wire.FromClient) -> None:
        """Send without waiting; lost when the engine is gone, which `run` finds out."""
        if self.joined:
            self._writer.write(wire.frame(message))

    def kill(self, why: str) -> None:
        """End the process at once. One that hangs in the kernel lives on; that is told once."""
        if not self.killed:
            logger.error("killing the engine process: %s", why, extra={"fields": {"pid": self.pid}})
            self.why = why
        self.killed = True
        self._found.process.kill()

    async def _follow(self) -> None:
        decoder = wire.engine_decoder()
        try:
            while (message := await wire.read(self._reader, decoder)) is not None:
                self._take(message)
        except msgspec.DecodeError as error:
            self.kill(f"the engine process sent what is no message: {error}")

    def _take(self, message: wire.FromEngine) -> None:
        match message:
            case wire.Report(events, stats):
                self.watchdog.progress(time.monotonic())
                self.stats = stats or self.stats
                self._on_events(events)
            case wire.Beat(phase, step_age, stats, info):
                self.watchdog.beat(time.monotonic(), step_age)
                self.phase, self.stats = phase, stats
                self._learn(info)
            case wire.Ended(reason, restart):
                self.why, self.mendable = self.why or reason, self.mendable and restart
            case wire.Kept():
                self.kept = True
            case wire.Hello():
                pass  # whoever found the engine has checked it; whoever started it knows it

    def _learn(self, info: EngineInfo | None) -> None:
        newly_ready = info is not None and self.info is None
        self.info = info
        if newly_ready:
            self.ready_at = time.monotonic()
            self._on_ready()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            self._on_tick()
            if complaint := self._hopeless(time.monotonic()):
                self.kill(complaint)

    def _hopeless(self, now: float) -> str:
        if self.info is None:
            return self._load.complaint(now, self.watchdog.heard, self.phase)
        return self.watchdog.complaint(now) if self.watchdog.hopeless(now) else ""

    async def _bury(self) -> str:
        reaping = asyncio.create_task(asyncio.to_thread(self._found.process.reap))
        if not (await asyncio.wait([reaping], timeout=LAST_WORDS))[0]:
            self._on_gone(self.why or "the engine process went away")
        how = await reaping
        return self.why or how

    def _disown(self) -> str:
        self._found.process.disown()
        return "the engine process goes on for another server"
