"""A load that gets nowhere is ended and tried again, by real processes and signals; one that only takes long is not."""

import asyncio
import math
import os
import signal
import sys
from pathlib import Path

import pytest

from service.engine.base import EngineState
from service.engine.client import EngineClient, Patience
from service.engine.process.load_watch import LoadWatch, limit_after
from service.errors import EngineFailed
from tests.support.engines import fake_config, is_alive, recorded_pid, scripted, until
from tests.support.server import PATIENCE

DEAF = (sys.executable, "-S", "-c", "import time; time.sleep(600)")


def restarting_at(engine: EngineClient, phase: str) -> bool:
    return engine.status.state is EngineState.RESTARTING and phase in engine.status.reason


@pytest.mark.parametrize(
    ("now", "heard", "complaint"),
    [
        (1180, 1000, ""),
        (1181, 1000, "no sign of life for 181 s while loading (importing torch)"),
        (1600, 1600, ""),
        (1601, 1601, "more than 600 s; after 601 s it was at: importing torch"),
    ],
)
def test_silence_and_length_of_a_load_are_judged(now: float, heard: float, complaint: str) -> None:
    found = LoadWatch(1000, silence=180, limit=600).complaint(now, heard, "importing torch")
    assert complaint in found
    assert bool(complaint) == bool(found)


def test_the_first_load_may_take_any_time_and_later_ones_are_measured_by_it() -> None:
    assert limit_after(None, least=600) == math.inf
    assert limit_after(20, least=600) == 600
    assert limit_after(300, least=600) == 1500


async def test_an_engine_that_hangs_while_it_loads_again_is_killed_and_the_next_one_serves(tmp_path: Path) -> None:
    patience = Patience(first_restart=0.01, exit=1.0, silent_load=3.0)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=patience, command=scripted(reload_seconds=2))
    await engine.start()
    os.kill(first := recorded_pid(tmp_path / "run"), signal.SIGKILL)
    await until(lambda: restarting_at(engine, "pretending to load"))
    os.kill(second := recorded_pid(tmp_path / "run"), signal.SIGSTOP)
    await until(lambda: engine.status.restarts == 2)
    assert "no sign of life" in engine.status.reason
    await until(lambda: engine.status.state is EngineState.READY)
    assert not is_alive(second)
    assert recorded_pid(tmp_path / "run") not in (first, second)
    await engine.stop()


async def test_a_reload_that_beats_but_never_ends_counts_as_a_failed_start_until_the_engine_is_given_up(
    tmp_path: Path,
) -> None:
    patience = Patience(first_restart=0.01, exit=1.0, starts=2, reload=0.5)
    command = scripted(reload_seconds=600)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=patience, command=command)
    await engine.start()
    os.kill(recorded_pid(tmp_path / "run"), signal.SIGKILL)
    await until(lambda: engine.status.state is EngineState.FAILED)
    assert "loading took more than" in engine.status.reason
    assert engine.status.reason.endswith("pretending to load")
    await engine.stop()


async def test_a_first_start_that_never_speaks_is_given_up_with_its_reason(tmp_path: Path) -> None:
    patience = Patience(first_restart=0.01, exit=1.0, starts=2, silent_load=0.5)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=patience, command=DEAF)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(EngineFailed, match="no sign of life"):
            await engine.start()
    assert engine.status.state is EngineState.FAILED
    await engine.stop()


async def test_a_first_load_that_beats_takes_the_time_it_takes(tmp_path: Path) -> None:
    patience = Patience(reload=0.1, silent_load=30.0)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=patience, command=scripted(load_seconds=2))
    await engine.start()
    assert engine.status.restarts == 0
    await engine.stop()
