"""The engine process's side of the socket: an event loop on a thread of its own, alive whatever the step loop does."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from service.engine.base import EngineInfo, EngineStats, Event, Finish, FinishReason, GenerationRequest
from service.engine.process import wire
from service.engine.process.lifetime import EXIT_TIMEOUT, Orders
from service.engine.process.loop import StepLoop
from service.engine.process.run_dir import forget
from service.engine.process.watchdog import HEARTBEAT_INTERVAL

logger = logging.getLogger(__name__)

LARGEST_BACKLOG = 64 * 1024 * 1024
"""Bytes a client may leave unread before it is given up."""
FAREWELL_TIMEOUT = 2.0
"""Seconds the last message gets to leave the process."""
EXIT_DEAF = 3
"""The exit code of an engine that nobody can reach any more; those of `engine/worker.py` are smaller."""


class _Connection:
    """One web worker, and the requests it has open."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.requests: set[str] = set()

    def send(self, frame: bytes) -> None:
        """Send without waiting; a client that does not read is cut off."""
        self.writer.write(frame)
        if self.writer.transport.get_write_buffer_size() > LARGEST_BACKLOG:
            logger.warning("a web worker does not read; its connection is cut")
            self.writer.transport.abort()


class Listener:
    """Serves the connections. Public methods are called from the engine's main thread.

    Every way to end the engine, a Stop message, being orphaned, is a SIGTERM to this very process: its handler, on
    the main thread, knows what the engine is doing. If that thread hangs, the process still ends.
    """

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._hello = wire.frame(wire.hello_of(orders.config, os.getpid()))
        self._connections: set[_Connection] = set()
        self._owners: dict[str, _Connection] = {}
        self._phase = "starting"
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._steps: StepLoop | None = None
        self._ending = False
        self._alone_since = 0.0
        self._greeted = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="listener", daemon=True).start()

    def phase(self, phase: str) -> None:
        """Tell what loading is at."""
        logger.info("loading: %s", phase)
        self._call(self._set_phase, phase)

    def ready(self, steps: StepLoop, info: EngineInfo) -> None:
        """The engine can generate from now on."""
        self._call(self._set_ready, steps, info)

    def report(self, events: list[Event], stats: EngineStats | None) -> None:
        """Send a step's events to whom they belong."""
        self._call(self._route, events, stats)

    def farewell(self, reason: str, *, restart: bool) -> None:
        """Send the last message and see it off; the connections stay open until the process has ended."""
        goodbye = asyncio.run_coroutine_threadsafe(self._say_goodbye(wire.Ended(reason, restart)), self._loop)
        with contextlib.suppress(TimeoutError):
            goodbye.result(FAREWELL_TIMEOUT)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        self._loop.call_soon_threadsafe(function, *args)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception:
            logger.exception("nobody can reach this engine any more: the process ends")
            os._exit(EXIT_DEAF)

    async def _serve(self) -> None:
        listener = socket.socket(fileno=self._orders.listener)
        listener.setblocking(False)
        self._alone_since = self._loop.time()
        server = await asyncio.start_unix_server(self._converse, sock=listener)
        while True:
            self._broadcast(self._beat())
            self._leave_if_orphaned(server)
            await asyncio.sleep(HEARTBEAT_INTERVAL)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from Hello to its end, when all its requests are cancelled."""
        connection = _Connection(writer)
        self._connections.add(connection)
        self._greeted.set()
        connection.send(self._hello)
        connection.send(self._beat())
        decoder = wire.client_decoder()
        try:
            while (message := await wire.read(reader, decoder)) is not None:
                self._obey(connection, message)
        except msgspec.DecodeError as error:
            logger.error("a web worker sent what is no message: %s", error)
        finally:
            self._hang_up(connection)

    def _obey(self, connection: _Connection, message: wire.FromClient) -> None:
        match message:
            case wire.Submit(request):
                self._submit(connection, request)
            case wire.Cancel(request_id):
                if self._steps and request_id in connection.requests:
                    self._steps.cancel(request_id)
            case wire.Stop(force):
                self._stop(connection, force)

    def _submit(self, connection: _Connection, request: GenerationRequest) -> None:
        if self._steps is None or self._ending or request.id in self._owners:
            why = "another request has this id" if request.id in self._owners else "the engine is not ready"
            connection.send(wire.frame(wire.Report([Finish(request.id, FinishReason.ERROR, why)])))
            return
        self._owners[request.id] = connection
        connection.requests.add(request.id)
        self._steps.submit(request)

    def _stop(self, connection: _Connection, force: bool) -> None:
        if force or len(self._connections) == 1:
            self._leave("another server needs an engine with other settings" if force else "")
        else:
            connection.send(wire.frame(wire.Kept()))
            connection.writer.close()

    def _hang_up(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._alone_since = self._loop.time()
        for request_id in connection.requests:
            del self._owners[request_id]
            if self._steps:
                self._steps.cancel(request_id)
        connection.writer.close()

    def _route(self, events: list[Event], stats: EngineStats | None) -> None:
        self._stats = stats or self._stats
        batches: dict[_Connection, list[Event]] = {c: [] for c in self._connections} if stats else {}
        for event in events:
            owner = self._owners.get(event.id)
            if owner is None:
                continue  # its connection has gone
            batches.setdefault(owner, []).append(event)
            if isinstance(event, Finish):
                del self._owners[event.id]
                owner.requests.discard(event.id)
        for connection, batch in batches.items():
            connection.send(wire.frame(wire.Report(batch, stats)))

    def _set_phase(self, phase: str) -> None:
        self._phase = phase
        self._broadcast(self._beat())

    def _set_ready(self, steps: StepLoop, info: EngineInfo) -> None:
        self._steps, self._info, self._phase = steps, info, ""
        self._broadcast(self._beat())

    def _beat(self) -> bytes:
        age = self._steps.step_age if self._steps else 0.0
        return wire.frame(wire.Beat(self._phase, age, self._stats, self._info))

    def _broadcast(self, frame: bytes) -> None:
        for connection in list(self._connections):
            connection.send(frame)

    def _leave_if_orphaned(self, server: asyncio.Server) -> None:
        alone = 0.0 if self._connections else self._loop.time() - self._alone_since
        # Not while someone holds the lock: that is a web worker about to connect.
        if alone > self._orders.orphan_seconds and forget(Path(self._orders.run_dir), os.getpid(), wait=False):
            server.close()
            logger.warning("no web worker came for %.0f s: the engine process ends", alone)
            self._leave("")

    def _leave(self, reason: str) -> None:
        if self._ending:
            return
        self._ending = True
        if reason:
            self._broadcast(wire.frame(wire.Ended(reason, restart=False)))
        self._loop.call_later(EXIT_TIMEOUT / 2, os._exit, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    async def _say_goodbye(self, message: wire.Ended) -> None:
        # Whoever started this process connected before it said what to load, but may not have been let in yet.
        await self._greeted.wait()
        self._broadcast(wire.frame(message))
        for connection in list(self._connections):
            connection.writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
            with contextlib.suppress(OSError):
                await connection.writer.drain()
