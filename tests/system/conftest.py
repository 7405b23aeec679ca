"""The product as an operator runs it: real processes, the real small model, real signals."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

PATIENCE = 120

GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "python:service.gunicorn_conf", "service.server:app()"]
SERVE = [sys.executable, "-m", "service", "serve"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One server process with its children, and what it logged."""

    command: list[str]
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        ours = {"HOST": "127.0.0.1", "PORT": self.port, "METRICS_PORT": self.metrics_port, "THREADS": 2}
        settings = {f"INTERNLM_{name}": str(value) for name, value in (ours | self.settings).items()}
        self.process = subprocess.Popen(self.command, env=os.environ | settings, stderr=self._log, stdout=self._log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def get(self, path: str = "/") -> httpx.Response | None:
        """The response, or None while nobody listens."""
        try:
            return httpx.get(self.url + path, timeout=10)
        except httpx.TransportError:
            return None

    def ask(self, prompt: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat", json={"prompt": prompt, "temperature": 0} | body, timeout=PATIENCE)

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).text

    def children(self) -> list[tuple[psutil.Process, list[str]]]:
        """Those that live, each with its command line; one that has just ended has none any more."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((child, child.cmdline()))
        return found

    def engine(self) -> psutil.Process:
        """The engine's process; it may have been adopted by init, so it is found by its command line and our port."""
        (found,) = [p for p in psutil.process_iter() if self._is_engine(p)]
        return found

    def _is_engine(self, process: psutil.Process) -> bool:
        try:
            mine = process.environ().get("INTERNLM_PORT") == str(self.port)
            return mine and "service.engine.worker" in process.cmdline() and process.status() != "zombie"
        except psutil.Error:
            return False

    def wait(self, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        deadline = time.monotonic() + patience
        while not (result := condition()):
            assert time.monotonic() < deadline, self.log[-4000:]
            time.sleep(0.02)
        return result

    def until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log[-4000:]
            response = self.get()
            return response is not None and response.status_code == 200

        self.wait(ready)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        children = self.children() if self.process.poll() is None else []
        processes = [*(child for child, _ in children), *self._engines()]
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in processes:
            if process.is_running():
                process.kill()
        self._log.close()

    def _engines(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if self._is_engine(p)]


Launch = Callable[..., Server]


@pytest.fixture
def launch(smollm2_dir: Path) -> Iterator[Launch]:
    """Starts servers of the small real model: `launch(GUNICORN, REQUEST_TIMEOUT=60)`."""
    servers: list[Server] = []

    def start(command: list[str], **settings: Any) -> Server:
        servers.append(Server(command, {"MODEL_DIR": str(smollm2_dir)} | settings))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def shared(smollm2_dir: Path) -> Iterator[Server]:
    """A ready server under gunicorn for tests that leave it as it was."""
    server = Server(GUNICORN, {"MODEL_DIR": str(smollm2_dir)})
    server.until_ready()
    yield server
    server.end()


def official_client(server: Server) -> openai.OpenAI:
    """As its documentation has it made, to be closed by `with`: of one that is dropped, the collector may find the
    connection first, which then counts as left open."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def client(shared: Server) -> Iterator[openai.OpenAI]:
    with official_client(shared) as made:
        yield made
