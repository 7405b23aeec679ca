"""More connections than a container's default limit of open files, and ones on which nothing comes."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from service.log import ACCEPT_FAILED
from tests.support.tokenizers import write_byte_level_dir
from tests.system.conftest import GUNICORN, SERVE, Server

SELDOM = timedelta(seconds=4.9)  # five, and what the clock of the log rounds away
Limited = Callable[[list[str], int, int], Server]


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    """Starts a server with the fake engine under a soft and a hard limit of open files: `limited(SERVE, 64, 4096)`."""
    model = write_byte_level_dir(tmp_path)
    (model / "config.json").write_text("{}")
    with ExitStack() as stack:

        def start(command: list[str], soft: int, hard: int) -> Server:
            under = ["sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh", *command]
            server = Server(under, {"MODEL_DIR": str(model), "ENGINE": "fake"})
            stack.callback(server.end)
            server.until_ready()
            return server

        yield start


def connections(server: Server, count: int) -> ExitStack:
    """So many of them, open and silent."""
    stack = ExitStack()
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
    return stack


@pytest.mark.parametrize("command", [GUNICORN, SERVE], ids=["gunicorn", "serve"])
def test_connections_beyond_the_soft_limit_keep_nobody_out(limited: Limited, command: list[str]) -> None:
    server = limited(command, 96, 2048)
    with connections(server, 300):
        alive = server.get("/healthz")
        assert alive is not None
        assert alive.status_code == 200
        assert "internlm_ready 1.0" in server.metrics()


def refusals(server: Server) -> list[datetime]:
    """When the log said that no more connections can be had."""
    lines = [line for line in server.log.splitlines() if ACCEPT_FAILED in line]
    return [datetime.fromisoformat(json.loads(line)["time"]) for line in lines]


def test_at_the_hard_limit_the_log_is_not_flooded_and_the_server_recovers(limited: Limited) -> None:
    server = limited(SERVE, 96, 96)
    with connections(server, 200):
        server.wait(lambda: refusals(server))
        time.sleep(2.5)  # asyncio tries again, and fails, every second
        said = refusals(server)
    assert all(later - earlier >= SELDOM for earlier, later in pairwise(said))
    assert server.wait(lambda: server.get("/healthz")).status_code == 200
