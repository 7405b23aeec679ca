"""The real server on a free port of the loopback interface, in this event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from fastapi import FastAPI

from service.lifecycle import Lifecycle, State
from service.server import DrainingServer, uvicorn_options

PATIENCE = 60
"""Seconds after which a test that waits for something gives up; nothing here takes as long."""


@dataclass
class RunningServer:
    """Where it listens, and the parts a test looks into."""

    host: str
    port: int
    server: DrainingServer
    lifecycle: Lifecycle

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@asynccontextmanager
async def run_server(app: FastAPI) -> AsyncIterator[RunningServer]:
    """Serve `app`; the port is open on entry, the model is perhaps still loading."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, **uvicorn_options())
    server = DrainingServer(config, app.state.lifecycle, app.state.settings)
    task = asyncio.create_task(server.serve())
    while not server.started and not task.done():
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield RunningServer("127.0.0.1", port, server, app.state.lifecycle)
    finally:
        server.should_exit = True
        await task


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something another task or process does."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def until_ready(running: RunningServer) -> None:
    await until(lambda: running.lifecycle.state in (State.READY, State.FAILED))
    assert running.lifecycle.ready, running.lifecycle.reason


def client(running: RunningServer) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, timeout=PATIENCE)
