"""The server: the app with everything wired, under uvicorn on a laptop or as gunicorn's one worker.

SIGTERM begins a drain: new chats get a 503, running answers finish, then the listener closes.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from service import log, open_files
from service.api.app import create_app
from service.api.health import Identity
from service.engine.base import Engine, EngineConfig
from service.engine.client import EngineClient
from service.engine.sleep import SleepOnIdle
from service.environment import load_settings
from service.http_protocol import HttpProtocol
from service.lifecycle import Lifecycle, State
from service.metrics_port import serve_metrics
from service.readiness import MakeEngine, Readiness
from service.settings import Settings, private_run_dir

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than the 60 s for which nginx keeps an idle upstream connection: the proxy must be the one to close it."""

STEPS_FROM_ACCEPT_TO_PROTOCOL = 3
"""Of the event loop: so many after it was accepted, a connection is known to what closes those that are left."""


def app() -> FastAPI:
    """What gunicorn loads: `gunicorn -c python:service.gunicorn_conf 'service.server:app()'`."""
    settings = load_settings()
    log.configure(settings.log_level, settings.log_format)
    return build(settings)


def build(settings: Settings, make_engine: MakeEngine | None = None) -> FastAPI:
    """The app with all its parts; its lifespan loads the model in the background, the port opens at once."""
    lifecycle, identity = Lifecycle(), Identity()
    readiness = Readiness(settings, lifecycle, identity, make_engine or process_engine(settings))

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with background(readiness.run()), background(serve_metrics(settings, readiness.metrics.registry)):
            yield
        await readiness.stop()

    app = create_app(
        settings, lifecycle, readiness.metrics, readiness.status, readiness.generation, identity, lifespan=lifespan
    )
    app.state.lifecycle = lifecycle
    app.state.settings = settings
    app.state.metrics = readiness.metrics
    return app


def process_engine(settings: Settings) -> MakeEngine:
    """Engines in a process of their own, their socket in the run directory."""
    run_dir = settings.run_dir or private_run_dir()

    def make(config: EngineConfig) -> Engine:
        def client(first_load: float | None) -> EngineClient:
            return EngineClient(config, run_dir, first_load=first_load)

        return SleepOnIdle(client, settings.sleep_after, config.max_queue) if settings.sleep_after else client(None)

    return make


@contextlib.asynccontextmanager
async def background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` beside the block; it is cancelled, and has ended, when the block is left."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class DrainingServer(uvicorn.Server):
    """uvicorn, but a first signal drains while the listener still answers; a second one ends at once."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: object = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the interpreter between two instructions of the main thread, so it only leaves a note."""
        # Not handed to uvicorn, which would raise it again at the end: a clean end must not look like death by signal.
        if self._lifecycle.state is State.DRAINING or self.should_exit:
            super().handle_exit(sig, frame)
        elif not self.started:
            self.should_exit = True
        else:
            delay = 0.0 if sig == signal.SIGINT else self._settings.drain_delay
            self._loop.call_soon_threadsafe(self.begin_drain, delay)

    def begin_drain(self, delay: float) -> None:
        """Refuse new chats; after `delay` seconds and the last running answer, stop listening. Once; then a no-op."""
        if self._lifecycle.state is State.DRAINING:
            return
        logger.info("draining", extra={"fields": {"active": self._lifecycle.active}})
        self._lifecycle.begin_drain()
        self._draining = self._loop.create_task(self._drain(delay))

    async def _drain(self, delay: float) -> None:
        # Proxies and kube-proxy go on sending here for a moment after the pod is told to end.
        await asyncio.sleep(delay)
        if not await self._lifecycle.wait_idle(self._settings.drain_timeout - delay):
            logger.error("answers still running at the end of the drain are cut")
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await stop_accepting(self.servers)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.state is State.FAILED and self._draining is None:
            self._draining = self._loop.create_task(self._give_up())
        return await super().on_tick(counter)

    async def _give_up(self) -> None:
        """A server that can never serve ends, so that its reason is seen; `GET /` tells it for a moment first."""
        await asyncio.sleep(self._settings.drain_delay)
        self.should_exit = True


async def stop_accepting(servers: Iterable[asyncio.Server]) -> None:
    """Let servers rest before they are closed: a connection accepted in the very step of the event loop in which its
    server is closed would be neither served nor closed (https://github.com/python/cpython/issues/109564)."""
    loop = asyncio.get_running_loop()
    for server in servers:
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    for _ in range(STEPS_FROM_ACCEPT_TO_PROTOCOL):
        await asyncio.sleep(0)


def uvicorn_options() -> dict[str, Any]:
    """Options for uvicorn alone and under gunicorn. Its own grace begins when the drain is over, so it can be short."""
    return {
        "http": HttpProtocol,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": 5,
    }


def serve(settings: Settings) -> int:
    """Serve on this machine until a signal; the exit status is 1 when the model could not be served."""
    open_files.raise_limit()
    with tempfile.TemporaryDirectory(prefix="internlm-chat-") as run_dir:
        app = build(settings.model_copy(update={"run_dir": Path(run_dir)}))
        lifecycle: Lifecycle = app.state.lifecycle
        config = uvicorn.Config(app, host=settings.host, port=settings.port, **uvicorn_options())
        with contextlib.suppress(KeyboardInterrupt):
            DrainingServer(config, lifecycle, settings).run()
    return 1 if lifecycle.state is State.FAILED else 0
