"""Engines in the process of a test: any Core, stepped on a thread of its own. Nothing to spawn, nothing to adopt."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial

from service.engine.base import (
    Core,
    EngineConfig,
    EngineInfo,
    EngineState,
    EngineStats,
    EngineStatus,
    Event,
    Finish,
    GenerationRequest,
)
from service.engine.fake import FakeCore, FakeScript
from service.engine.process.loop import StepLoop
from service.engine.process.streams import Streams, refusal
from service.errors import EngineFailed

logger = logging.getLogger(__name__)

EXPIRY_INTERVAL = 0.5


class LocalEngine:
    """Runs `build(progress)` and then the core it returns on one thread; there is no restart if that core breaks.

    A step longer than `step_timeout` seconds makes the engine STUCK until it ends.
    """

    def __init__(self, build: Callable[[Callable[[str], None]], Core], *, step_timeout: float = 60.0) -> None:
        self._build = build
        self._step_timeout = step_timeout
        self._state = EngineState.STARTING
        self._reason = ""
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._loop: StepLoop | None = None
        self._settled = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._expiry: asyncio.Task[None] | None = None
        self._streams = Streams(self._pass_on, self._cancel)

    @property
    def status(self) -> EngineStatus:
        """The latest snapshot."""
        state, reason = self._state, self._reason
        age = 0.0 if self._loop is None else self._loop.step_age
        if state is EngineState.READY and age > self._step_timeout:
            state, reason = EngineState.STUCK, f"a step of the engine has been running for {age:.1f} s"
        return EngineStatus(state=state, reason=reason, info=self._info, stats=self._stats)

    @property
    def open_requests(self) -> int:
        """Requests whose Finish nobody has seen yet."""
        return len(self._streams)

    async def start(self) -> None:
        """Load, and return once ready. Raises EngineFailed when loading fails."""
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._work, args=(loop,), name="engine", daemon=True)
            self._thread.start()
            self._expiry = loop.create_task(self._expire_late_requests())
        await self._settled.wait()
        if self._state is not EngineState.READY:
            raise EngineFailed(self._reason)

    def submit(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """Events of one request; a Finish with reason ERROR at once while the engine is not ready."""
        return self._streams.follow(request)

    async def stop(self) -> None:
        """End the thread; waits for the step that runs now."""
        self._move(EngineState.STOPPED, "the engine was stopped")
        if self._loop is not None:
            self._loop.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._streams.fail_all(self._reason)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """The engine thread: load, step, and tell the event loop of all that happens."""

        def tell(call: Callable[..., None], *args: object) -> None:
            loop.call_soon_threadsafe(call, *args)

        try:
            core = self._build(partial(tell, self._move, EngineState.LOADING))
            steps = StepLoop(core, partial(tell, self._take))
            tell(self._ready, steps, core.info)
            steps.run()
        except Exception as error:
            logger.exception("the engine failed")
            tell(self._fail, f"{type(error).__name__}: {error}")

    def _ready(self, steps: StepLoop, info: EngineInfo) -> None:
        self._loop, self._info = steps, info
        if self._state is EngineState.STOPPED:
            steps.stop()
        self._move(EngineState.READY, "")
        self._settled.set()

    def _take(self, events: list[Event], stats: EngineStats | None) -> None:
        self._stats = stats or self._stats
        self._streams.deliver(events)

    def _fail(self, reason: str) -> None:
        self._move(EngineState.FAILED, reason)
        self._streams.fail_all(reason)

    def _move(self, state: EngineState, reason: str) -> None:
        """Enter a state. Stopped is final, and both ends of a life settle `start`."""
        if self._state is not EngineState.STOPPED:
            self._state, self._reason = state, reason
        if self._state in (EngineState.STOPPED, EngineState.FAILED):
            self._settled.set()

    def _pass_on(self, request: GenerationRequest) -> Finish | None:
        status = self.status
        if self._loop is None or status.state is not EngineState.READY:
            return refusal(request, status)
        self._loop.submit(request)
        return None

    def _cancel(self, request_id: str) -> None:
        if self._loop is not None:
            self._loop.cancel(request_id)

    async def _expire_late_requests(self) -> None:
        while True:
            await asyncio.sleep(EXPIRY_INTERVAL)
            self._streams.expire(time.monotonic())


class FakeEngine(LocalEngine):
    """A FakeCore in this process, as an Engine; with `loads=False` it goes on loading until `finish_loading`."""

    def __init__(
        self, config: EngineConfig | None = None, script: FakeScript | None = None, *, loads: bool = True
    ) -> None:
        self._config_used = config or EngineConfig(kind="fake", model_dir="")
        self._script = script or FakeScript()
        self._core: FakeCore | None = None
        self._may_load = threading.Event()
        if loads:
            self.finish_loading()
        super().__init__(self._build, step_timeout=self._config_used.step_timeout)

    def finish_loading(self) -> None:
        """Let a load end that was held."""
        self._may_load.set()

    def release(self) -> None:
        """End a hang the script asked for."""
        if self._core is not None:
            self._core.release()

    async def stop(self) -> None:
        """As LocalEngine, but a scripted hang and a load that is held end too."""
        self.finish_loading()
        self.release()
        await super().stop()

    def _build(self, progress: Callable[[str], None]) -> FakeCore:
        progress("pretending to load")
        self._may_load.wait()
        self._core = FakeCore(self._config_used, self._script)
        return self._core
