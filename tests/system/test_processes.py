"""Death and renewal of each process, by real signals, with the real model loaded."""

import json
import os
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.nvml import GIB
from tests.system.conftest import GUNICORN, SERVE, Launch, Server

ROOT = Path(__file__).parents[2]

FAKE_PYNVML = """
import sys
from pathlib import Path
from tests.support.nvml import Nvml
sys.modules[__name__] = Nvml(free=int(Path({free!r}).read_text()))
"""


class Stream(threading.Thread):
    """Reads one streamed answer to its end."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self.begun = threading.Event()
        self.lines: list[str] = []

    def run(self) -> None:
        body = {"prompt": "Tell me a story about a fox.", "temperature": 0, "max_new_tokens": 60, "stream": True}
        with httpx.stream("POST", f"{self._server.url}/v1/chat", json=body, timeout=120) as response:
            for line in response.iter_lines():
                self.lines += [line] if line else []
                self.begun.set()

    def start_and_wait(self) -> "Stream":
        self.start()
        assert self.begun.wait(60)
        return self

    def last(self) -> dict[str, object]:
        self.join(120)
        assert self.lines[-1] == "data: [DONE]"
        return dict(json.loads(self.lines[-2].removeprefix("data: ")))


def kill_web_worker(server: Server) -> None:
    (worker,) = [child for child, command in server.children() if "service.engine.worker" not in command]
    worker.kill()
    server.wait(lambda: worker.pid not in {child.pid for child, _ in server.children()})


@pytest.mark.parametrize("command", [GUNICORN, SERVE], ids=["gunicorn", "serve"])
def test_sigterm_lets_the_running_answer_finish(launch: Launch, command: list[str]) -> None:
    server = launch(command)
    server.until_ready()
    engine = server.engine()
    stream = Stream(server).start_and_wait()
    assert server.stop() == 0
    assert stream.last()["finish_reason"] in ("stop", "length")
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_ends_the_laptop_server_cleanly(launch: Launch) -> None:
    server = launch(SERVE)
    server.until_ready()
    assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_the_master_alone_drains_as_well(launch: Launch, sig: int) -> None:
    server = launch(GUNICORN)
    server.until_ready()
    stream = Stream(server).start_and_wait()
    server.process.send_signal(sig)
    server.wait(lambda: '"draining"' in server.log, 10)
    assert stream.last()["finish_reason"] in ("stop", "length")
    assert server.process.wait(20) == 0


def test_a_worker_whose_master_is_gone_finishes_its_answer_and_ends_with_the_engine(launch: Launch) -> None:
    server = launch(GUNICORN)
    server.until_ready()
    family = [child for child, _ in server.children()]
    stream = Stream(server).start_and_wait()
    server.process.kill()
    assert stream.last()["finish_reason"] in ("stop", "length")
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert server.get() is None


def test_a_dead_web_worker_comes_back_without_loading_the_model_again(launch: Launch) -> None:
    server = launch(GUNICORN)
    server.until_ready()
    engine = server.engine().pid
    kill_web_worker(server)
    server.until_ready()
    assert server.engine().pid == engine
    assert server.ask("Hi", max_new_tokens=4).status_code == 200


def test_the_memory_of_a_living_engine_keeps_no_new_web_worker_waiting(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU of which the engine holds nearly all, as far as the driver tells; the engine itself is on the CPU."""
    free = tmp_path / "free"
    free.write_text(str(23 * GIB))
    (tmp_path / "pynvml.py").write_text(FAKE_PYNVML.format(free=str(free)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    server = launch(GUNICORN)
    server.until_ready()
    engine = server.engine().pid
    free.write_text(str(2 * GIB))
    kill_web_worker(server)
    server.until_ready()
    assert server.engine().pid == engine


def test_a_dead_engine_ends_its_answers_with_a_reason_and_comes_back(launch: Launch) -> None:
    server = launch(GUNICORN)
    server.until_ready()
    stream = Stream(server).start_and_wait()
    server.engine().kill()
    problem = stream.last()
    assert problem["status"] == 503
    assert "SIGKILL" in str(problem["detail"])
    server.until_ready()
    assert server.ask("Hi", max_new_tokens=4).status_code == 200
    assert "internlm_engine_restarts_total 1.0" in server.metrics()


def test_a_model_that_cannot_be_served_ends_the_server_with_its_reason(launch: Launch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    for command in (GUNICORN, SERVE):
        server = launch(command, MODEL_DIR=str(tmp_path))
        assert server.process.wait(60) != 0
        assert "cannot serve: model files: " in server.log
        assert "config.json" in server.log


def test_a_mistyped_setting_refuses_to_start(launch: Launch) -> None:
    server = launch(SERVE, PROT="1")
    assert server.process.wait(60) == 1
    assert "unknown setting INTERNLM_PROT" in server.log


def test_an_engine_nobody_asks_ends_and_is_back_for_the_next_question(launch: Launch) -> None:
    server = launch(GUNICORN, SLEEP_AFTER=1)
    server.until_ready()
    engine = server.engine()
    before = server.ask("What is the capital of France?").json()["response"]
    server.wait(lambda: not engine.is_running())
    asleep = server.get()
    assert asleep is not None
    assert (asleep.status_code, asleep.json()["reason"]) == (200, "engine asleep: the next request wakes it")
    assert 'internlm_engine_state{state="asleep"} 1.0' in server.metrics()
    assert "internlm_ready 1.0" in server.metrics()
    assert server.ask("What is the capital of France?").json()["response"] == before
    assert server.engine().pid != engine.pid
    assert server.stop() == 0


def test_a_server_that_sleeps_ends_at_once(launch: Launch) -> None:
    server = launch(SERVE, SLEEP_AFTER=0.5, ENGINE="fake")
    server.until_ready()
    server.wait(lambda: 'state="asleep"} 1.0' in server.metrics())
    assert server.stop() == 0
