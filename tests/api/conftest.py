"""A real server on a real socket around the fake engine: everything but the model is the product."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.engine.base import EngineConfig
from service.engine.fake import FakeScript
from service.metrics import Metrics
from service.server import build
from service.settings import Settings
from tests.support.local_engine import FakeEngine
from tests.support.server import RunningServer, client, run_server, until_ready
from tests.support.tokenizers import write_byte_level_dir


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a real, tiny tokenizer and no weights: the fake engine needs none."""
    directory = write_byte_level_dir(tmp_path_factory.mktemp("model"))
    (directory / "config.json").write_text("{}")
    return directory


@dataclass
class Service:
    """A running server, an HTTP client for it, and its engine."""

    running: RunningServer
    metrics: Metrics
    http: httpx.AsyncClient
    engine: FakeEngine

    async def ask(self, **body: Any) -> httpx.Response:
        return await self.http.post("/v1/chat", json={"prompt": "hello"} | body)


Start = Callable[..., Awaitable[Service]]


@pytest.fixture
async def start(model_dir: Path) -> AsyncIterator[Start]:
    """Starts services: `await start(script=FakeScript(...), max_queue=0)`.

    `wait=False` does not wait for readiness; with `loads=False` there is none before `engine.finish_loading()`.
    """
    async with AsyncExitStack() as stack:

        async def run(
            script: FakeScript | None = None, wait: bool = True, loads: bool = True, **settings: Any
        ) -> Service:
            engines: list[FakeEngine] = []

            def make(config: EngineConfig) -> FakeEngine:
                engines.append(FakeEngine(config, script or FakeScript(), loads=loads))
                return engines[0]

            used = Settings(
                **{"engine": "fake", "model_dir": model_dir, "metrics_port": 0, "drain_delay": 0.0} | settings
            )
            app = build(used, make)
            running = await stack.enter_async_context(run_server(app))
            if wait and loads:
                await until_ready(running)
            http = await stack.enter_async_context(client(running))
            while not engines:
                await asyncio.sleep(0.005)
            return Service(running, app.state.metrics, http, engines[0])

        yield run


@pytest.fixture
async def service(start: Start) -> Service:
    """A service with default settings, ready."""
    return await start()
