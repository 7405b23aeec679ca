"""More connections than a container's default limit of open files, and ones on which nothing comes."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.tokenizers import write_byte_level_dir
from tests.system.conftest import GUNICORN, SERVE, Server

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


def test_at_the_hard_limit_the_log_is_not_flooded_and_the_server_recovers(limited: Limited) -> None:
    server = limited(SERVE, 96, 96)
    with connections(server, 200):
        server.wait(lambda: "out of system resource" in server.log)
        time.sleep(2.5)
        assert server.log.count("out of system resource") == 1
    assert server.wait(lambda: server.get("/healthz")).status_code == 200
