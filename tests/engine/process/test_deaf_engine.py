"""Engine processes that do not listen, do not die or are not there: nobody waits for them for ever."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from service.engine import client
from service.engine.base import EngineInfo, EngineState, EngineStats, Finish, FinishReason
from service.engine.client import EngineClient, Patience
from service.engine.process import lifetime, link, wire
from service.engine.process.load_watch import LoadWatch
from service.engine.process.run_dir import locked
from service.engine.process.watchdog import Watchdog
from service.errors import EngineFailed
from tests.support.engines import PATIENCE, SUPPORT, a_request, fake_config, recorded_pid, scripted, until

INFO = EngineInfo(kind="fake", device="cpu", dtype="none", max_context=64, max_running=1, vocab_size=8)
DEAF = (sys.executable, "-c", "import time; time.sleep(600)")


async def test_an_engine_found_that_talks_but_does_not_listen_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifetime, "EXIT_TIMEOUT", 0.5)
    command = [sys.executable, str(SUPPORT / "deaf_engine.py"), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        engine = EngineClient(fake_config(), tmp_path / "run")
        async with asyncio.timeout(PATIENCE):
            await engine.start()
        assert deaf.wait() == -signal.SIGKILL
        assert recorded_pid(tmp_path / "run") != deaf.pid
        await engine.stop()


async def test_stopping_while_a_deaf_process_is_only_just_being_started_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "EXIT_TIMEOUT", 2.0)
    (tmp_path / "run").mkdir(mode=0o700)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=Patience(exit=0.01), command=DEAF)
    with locked(tmp_path / "run"):  # as another web worker would that is about to connect
        starting = asyncio.create_task(engine.start())
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop())
        began = time.monotonic()
        await until(lambda: time.monotonic() > began + 0.1)  # the first patience is over, and nobody was joined yet
    async with asyncio.timeout(PATIENCE):
        await stopping
    with pytest.raises(EngineFailed, match="stopped"):
        await starting
    assert not list((tmp_path / "run").iterdir())


async def test_a_connection_that_outlives_its_killed_process_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """So does that of a process which hangs in the kernel: it is looked at for as long as it is there."""
    monkeypatch.setattr(link, "WATCH_INTERVAL", 0.001)
    ours, theirs = socket.socketpair()
    looks: list[int] = []
    with subprocess.Popen(["sleep", "600"]) as child, theirs:
        found = lifetime.Found(lifetime.EngineProcess(child.pid, child), ours)
        watchdog = Watchdog(0.01, 0.01, heard=time.monotonic())
        load = LoadWatch(time.monotonic(), silence=60)
        tick = partial(looks.append, 1)
        joined = link.Link(found, watchdog, load, on_ready=list, on_events=list, on_tick=tick, on_gone=list)
        await joined.open()
        following = asyncio.create_task(joined.run())
        theirs.sendall(wire.frame(wire.Beat("", 0.0, EngineStats(), INFO)))
        await until(lambda: child.poll() is not None)
        seen = len(looks)
        await until(lambda: len(looks) > seen + 20)
    assert "no sign of life" in await following
    assert caplog.text.count("killing the engine process") == 1


async def test_clients_of_an_engine_that_is_long_in_dying_do_not_wait_for_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that gives a GPU's memory back."""
    monkeypatch.setattr(link, "LAST_WORDS", 0.05)
    engine = EngineClient(fake_config(), tmp_path / "run", command=scripted(step_seconds=0.01))
    await engine.start()
    dying, dead = threading.Event(), threading.Event()
    reap = lifetime.EngineProcess.reap

    def reap_slowly(process: lifetime.EngineProcess) -> str:
        dying.set()
        dead.wait(PATIENCE)
        return reap(process)

    monkeypatch.setattr(lifetime.EngineProcess, "reap", reap_slowly)
    answer = engine.submit(a_request(new=500))
    await anext(answer)
    os.kill(recorded_pid(tmp_path / "run"), signal.SIGKILL)
    async with asyncio.timeout(PATIENCE / 2):
        *_, end = [event async for event in answer]
    assert isinstance(end, Finish)
    assert (end.reason, end.message) == (FinishReason.ERROR, "the engine process went away")
    assert dying.is_set()
    assert not dead.is_set()
    dead.set()
    await until(lambda: engine.status.state is EngineState.READY)
    await engine.stop()


def test_a_process_that_not_even_a_kill_ends_is_told_as_the_nodes_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "EXIT_TIMEOUT", 0.01)
    with subprocess.Popen(["sleep", "600"]) as child:
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda *_: None)  # what SIGKILL is to a process that hangs in a driver
            with pytest.raises(EngineFailed, match=r"in the kernel.*dmesg"):
                lifetime.EngineProcess(child.pid, child).reap()
        child.kill()


async def test_a_run_directory_that_cannot_be_used_is_one_line_of_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    engine = EngineClient(fake_config(), tmp_path / "run")
    with pytest.raises(EngineFailed, match="chmod 700"):
        await engine.start()
    assert engine.status.state is EngineState.FAILED
    (record,) = [record for record in caplog.records if record.name == "service.engine.client"]
    assert record.exc_info is None
    await engine.stop()
