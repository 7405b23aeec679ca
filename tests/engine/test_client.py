"""The engine in its own process, seen from the web side; every process here is real, and so is every death."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from service.engine.base import EngineConfig, EngineState, FinishReason
from service.engine.client import EngineClient, Patience
from service.engine.process import lifetime
from service.errors import EngineFailed
from tests.support.engines import (
    SUPPORT,
    a_request,
    events_of,
    fake_config,
    finish_of,
    is_alive,
    is_stopped,
    leave_after,
    reason_of,
    recorded_pid,
    scripted,
    tokens_of,
    until,
)

HASTY = Patience(first_restart=0.01, starts=3, exit=1.0, heartbeat=2.5)
ENDLESS = 30_000


@asynccontextmanager
async def running(
    run_dir: Path,
    config: EngineConfig | None = None,
    *,
    command: Sequence[str] = lifetime.WORKER,
    patience: Patience = HASTY,
) -> AsyncIterator[EngineClient]:
    """A started engine, stopped at the end whatever happens."""
    engine = EngineClient(config or fake_config(), run_dir, patience=patience, command=command)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


async def failure_of(run_dir: Path, command: Sequence[str]) -> EngineClient:
    """An engine that must not come up."""
    engine = EngineClient(fake_config(), run_dir, patience=HASTY, command=command)
    with pytest.raises(EngineFailed) as failure:
        await engine.start()
    assert engine.status.state is EngineState.FAILED
    assert str(failure.value) == engine.status.reason
    await engine.stop()
    return engine


@contextmanager
def web_worker(run_dir: Path, config: EngineConfig, orphan: float) -> Iterator[int]:
    """Another web worker with an endless request, killed at the end; yields the pid of its engine."""
    arguments = [str(run_dir), msgspec.json.encode(config).decode(), str(orphan)]
    command = [sys.executable, str(SUPPORT / "web_worker.py"), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        try:
            yield int(worker.stdout.readline())
        finally:
            worker.kill()


def no_trace_of(pid: int, run_dir: Path) -> bool:
    return not is_alive(pid) and not list(run_dir.iterdir())


async def test_it_answers_and_leaves_neither_process_nor_file_behind(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        assert engine.status.state is EngineState.READY
        assert engine.status.info is not None
        assert engine.status.info.kind == "fake"
        assert tokens_of(await events_of(engine, a_request([5, 6], stop=[2]))) == [5, 6, 2]
        pid = recorded_pid(tmp_path / "run")
    assert engine.status.state is EngineState.STOPPED
    assert no_trace_of(pid, tmp_path / "run")


async def test_the_run_directory_is_made_private(tmp_path: Path) -> None:
    async with running(tmp_path / "deep" / "run"):
        assert (tmp_path / "deep" / "run").stat().st_mode & 0o777 == 0o700


async def test_a_run_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    assert "chmod 700" in (await failure_of(tmp_path / "run", lifetime.WORKER)).status.reason


async def test_a_run_directory_whose_name_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    assert "too long" in (await failure_of(tmp_path / ("x" * 100), lifetime.WORKER)).status.reason


async def test_loading_is_told_by_its_phase_and_a_request_meanwhile_ends_at_once(tmp_path: Path) -> None:
    engine = EngineClient(fake_config(), tmp_path / "run", patience=HASTY, command=scripted(load_seconds=600))
    assert engine.status.state is EngineState.STARTING
    assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR
    starting = asyncio.create_task(engine.start())
    await until(lambda: (engine.status.state, engine.status.reason) == (EngineState.LOADING, "pretending to load"))
    assert "loading" in finish_of(await events_of(engine, a_request())).message
    os.kill(recorded_pid(tmp_path / "run"), signal.SIGUSR1)
    await starting
    assert engine.status.state is EngineState.READY
    await engine.stop()


async def test_an_engine_killed_mid_answer_ends_every_request_once_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        reading = [asyncio.create_task(events_of(engine, a_request(new=ENDLESS))) for _ in range(5)]
        await until(lambda: engine.status.stats.running == 5)
        os.kill(recorded_pid(tmp_path / "run"), signal.SIGKILL)
        for events in await asyncio.gather(*reading):
            assert finish_of(events).reason is FinishReason.ERROR
            assert "SIGKILL, perhaps out of memory" in finish_of(events).message
        assert engine.status.state is EngineState.RESTARTING
        assert "SIGKILL" in engine.status.reason
        assert engine.open_requests == 0
        await until(lambda: engine.status.state is EngineState.READY)
        assert engine.status.restarts == 1
        assert reason_of(await events_of(engine, a_request())) is FinishReason.LENGTH


async def test_a_kernel_that_kills_the_engine_is_left_out_when_it_is_started_again(tmp_path: Path) -> None:
    async with running(tmp_path / "run", command=scripted(rogue="kernel")) as engine:
        assert engine.status.state is EngineState.READY
        assert engine.status.restarts == 1


async def test_an_engine_that_breaks_says_why_and_comes_back(tmp_path: Path) -> None:
    async with running(tmp_path / "run", command=scripted(crash_at_step=3)) as engine:
        events = await events_of(engine, a_request(new=ENDLESS))
        assert len(tokens_of(events)) == 2
        assert "crash at step 3" in finish_of(events).message
        await until(lambda: engine.status.state is EngineState.RESTARTING)
        assert "crash at step 3" in engine.status.reason
        await until(lambda: engine.status.state is EngineState.READY)
        assert reason_of(await events_of(engine, a_request(new=2))) is FinishReason.LENGTH


async def test_an_engine_that_said_why_it_ends_is_not_ready_while_its_process_is_still_there(tmp_path: Path) -> None:
    async with running(tmp_path / "run", command=scripted(crash_at_step=3, lingering_seconds=1)) as engine:
        pid = recorded_pid(tmp_path / "run")
        await events_of(engine, a_request(new=ENDLESS))
        await until(lambda: engine.status.state is EngineState.RESTARTING)
        assert is_alive(pid)
        assert "crash at step 3" in engine.status.reason
        assert "crash at step 3" in finish_of(await events_of(engine, a_request())).message
        assert is_alive(pid)


async def test_a_configuration_that_cannot_work_fails_at_once_with_its_own_words(tmp_path: Path) -> None:
    engine = await failure_of(tmp_path / "run", scripted(misconfigured="there is no GPU; set INTERNLM_DEVICE=cpu"))
    assert engine.status.reason == "there is no GPU; set INTERNLM_DEVICE=cpu"
    assert engine.status.restarts == 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (scripted(broken="no weights"), "RuntimeError: no weights"),
        ((sys.executable, "-c", "raise SystemExit(3)"), "exit code 3"),
        ((sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"), "SIGSEGV"),
    ],
    ids=["while loading", "before the first message", "by a signal"],
)
async def test_an_engine_that_never_gets_ready_is_given_up_after_some_starts(
    tmp_path: Path, command: Sequence[str], reason: str
) -> None:
    engine = await failure_of(tmp_path / "run", command)
    assert reason in engine.status.reason
    assert engine.status.restarts == HASTY.starts - 1
    assert not list((tmp_path / "run").iterdir())
    assert reason in finish_of(await events_of(engine, a_request())).message


async def test_starts_in_vain_are_ever_further_apart(tmp_path: Path) -> None:
    """Else a broken engine's starts would take the machine from whoever is to mend it."""
    stamps = tmp_path / "stamps"
    program = f"import time; print(time.monotonic(), file=open({str(stamps)!r}, 'a')); raise SystemExit(3)"
    patience, command = Patience(first_restart=0.6, starts=3), (sys.executable, "-S", "-c", program)
    engine = EngineClient(fake_config(), tmp_path / "run", patience=patience, command=command)
    with pytest.raises(EngineFailed):
        await engine.start()
    await engine.stop()
    starts = [float(stamp) for stamp in stamps.read_text().split()]
    first, second = (later - earlier for earlier, later in itertools.pairwise(starts))
    assert first > 0.6
    assert second > 1.2


async def test_a_program_that_does_not_exist_fails_at_once(tmp_path: Path) -> None:
    engine = await failure_of(tmp_path / "run", [str(tmp_path / "no-such-program")])
    assert "no-such-program" in engine.status.reason
    assert not list((tmp_path / "run").iterdir())


async def test_a_step_that_hangs_makes_the_engine_stuck_until_it_ends(tmp_path: Path) -> None:
    command = scripted(hang_at_step=2)
    # Generous: at twice this the engine would be killed, which is the next test.
    async with running(tmp_path / "run", fake_config(step_timeout=2.0), command=command) as engine:
        reading = asyncio.create_task(events_of(engine, a_request(new=4)))
        await until(lambda: engine.status.state is EngineState.STUCK)
        assert "longer than 2 s" in engine.status.reason
        assert "stuck" in finish_of(await events_of(engine, a_request())).message
        os.kill(recorded_pid(tmp_path / "run"), signal.SIGUSR1)
        assert reason_of(await reading) is FinishReason.LENGTH
        assert engine.status.state is EngineState.READY
        assert engine.status.restarts == 0


async def test_a_step_that_hangs_for_good_gets_the_engine_killed_and_started_again(tmp_path: Path) -> None:
    async with running(tmp_path / "run", fake_config(step_timeout=0.2), command=scripted(hang_at_step=2)) as engine:
        assert "a step of the engine" in finish_of(await events_of(engine, a_request(new=4))).message
        await until(lambda: engine.status.state is EngineState.READY)
        assert engine.status.restarts == 1


async def test_a_silent_process_is_stuck_until_it_speaks_again(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        pid = recorded_pid(tmp_path / "run")
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: engine.status.state is EngineState.STUCK)
        assert "no sign of life" in engine.status.reason
        os.kill(pid, signal.SIGCONT)
        await until(lambda: engine.status.state is EngineState.READY)
        assert engine.status.restarts == 0


async def test_a_request_outlives_its_deadline_by_little_when_the_engine_is_silent(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        pid = recorded_pid(tmp_path / "run")
        os.kill(pid, signal.SIGSTOP)
        assert reason_of(await events_of(engine, a_request(seconds=-2))) is FinishReason.DEADLINE
        assert engine.open_requests == 0
        os.kill(pid, signal.SIGCONT)


async def test_one_hundred_readers_that_leave_early_leave_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path / "run", fake_config(max_running=16)) as engine:
        await asyncio.gather(*(leave_after(engine, a_request(new=ENDLESS), tokens=2) for _ in range(100)))
        assert engine.open_requests == 0
        await until(lambda: engine.status.stats.running == engine.status.stats.waiting == 0)


async def test_stopping_ends_open_requests_and_later_ones_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        reading = asyncio.create_task(events_of(engine, a_request(new=ENDLESS)))
        await until(lambda: engine.status.stats.running)
    assert reason_of(await reading) is FinishReason.ERROR
    assert "stopped" in finish_of(await events_of(engine, a_request())).message


async def test_stopping_while_it_loads_ends_the_process_and_the_start(tmp_path: Path) -> None:
    engine = EngineClient(fake_config(), tmp_path / "run", patience=HASTY, command=scripted(load_seconds=600))
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.reason == "pretending to load")
    pid = recorded_pid(tmp_path / "run")
    await engine.stop()
    with pytest.raises(EngineFailed, match="stopped"):
        await starting
    assert no_trace_of(pid, tmp_path / "run")


async def test_stopping_an_engine_that_does_not_listen_kills_it(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        pid = recorded_pid(tmp_path / "run")
        os.kill(pid, signal.SIGSTOP)
    assert no_trace_of(pid, tmp_path / "run")
    assert engine.status.state is EngineState.STOPPED


async def test_stopping_what_was_never_started_is_no_error(tmp_path: Path) -> None:
    engine = EngineClient(fake_config(), tmp_path / "run")
    await engine.stop()
    assert engine.status.state is EngineState.STOPPED


async def test_ctrl_c_in_the_servers_terminal_does_not_reach_the_engine(tmp_path: Path) -> None:
    async with running(tmp_path / "run"):
        assert os.getsid(recorded_pid(tmp_path / "run")) != os.getsid(0)


async def test_the_engine_of_a_dead_web_worker_is_taken_over_without_loading_again(tmp_path: Path) -> None:
    with web_worker(tmp_path / "run", fake_config(), orphan=60) as pid:
        pass
    async with running(tmp_path / "run") as engine:
        assert recorded_pid(tmp_path / "run") == pid
        # It has said something, and what the dead one had asked for is cancelled.
        await until(lambda: engine.status.stats.generation_tokens and not engine.status.stats.running)
        assert tokens_of(await events_of(engine, a_request([5, 6], stop=[2]))) == [5, 6, 2]
    await until(lambda: no_trace_of(pid, tmp_path / "run"))


async def test_an_engine_with_other_settings_is_ended_before_a_new_one_starts(tmp_path: Path) -> None:
    with web_worker(tmp_path / "run", fake_config(max_running=3), orphan=60) as old:
        pass
    async with running(tmp_path / "run") as engine:
        assert not is_alive(old)
        assert recorded_pid(tmp_path / "run") != old
        assert engine.status.info is not None
        assert engine.status.info.max_running == 8


async def test_a_web_worker_whose_engine_was_replaced_does_not_take_it_back(tmp_path: Path) -> None:
    async with running(tmp_path / "run", fake_config(max_running=3)) as old:
        reading = asyncio.create_task(events_of(old, a_request(new=ENDLESS)))
        await until(lambda: old.status.stats.running)
        async with running(tmp_path / "run") as new:
            assert "other settings" in finish_of(await reading).message
            assert old.status.state is EngineState.FAILED
            assert new.status.state is EngineState.READY


async def test_a_silent_engine_found_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "HELLO_TIMEOUT", 1.0)
    with web_worker(tmp_path / "run", fake_config(), orphan=60) as old:
        os.kill(old, signal.SIGSTOP)
        await until(lambda: is_stopped(old))
    async with running(tmp_path / "run"):
        await until(lambda: not is_alive(old))  # SIGKILL is sent; a busy machine takes a moment to act on it
        assert recorded_pid(tmp_path / "run") != old


async def test_an_engine_nobody_comes_back_for_ends_and_leaves_no_trace(tmp_path: Path) -> None:
    with web_worker(tmp_path / "run", fake_config(), orphan=0.5) as pid:
        pass
    await until(lambda: no_trace_of(pid, tmp_path / "run"))


async def test_two_web_workers_share_one_engine_and_the_last_one_ends_it(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as new:
        async with running(tmp_path / "run") as old:
            pid = recorded_pid(tmp_path / "run")
            first, second = await asyncio.gather(
                events_of(old, a_request([5], new=2)), events_of(new, a_request([6], new=2))
            )
            assert (tokens_of(first), tokens_of(second)) == ([5, 5], [6, 6])
        assert is_alive(pid)
        assert new.status.state is EngineState.READY
        assert reason_of(await events_of(new, a_request())) is FinishReason.LENGTH
    await until(lambda: no_trace_of(pid, tmp_path / "run"))


async def test_an_engine_kept_for_another_web_worker_can_still_be_found(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as old, running(tmp_path / "run"):
        pid = recorded_pid(tmp_path / "run")
        await old.stop()
        async with running(tmp_path / "run"):
            assert recorded_pid(tmp_path / "run") == pid
        assert is_alive(pid)
    await until(lambda: no_trace_of(pid, tmp_path / "run"))


async def test_two_web_workers_that_start_at_once_load_the_model_once(tmp_path: Path) -> None:
    command = scripted(load_seconds=600)
    both = [EngineClient(fake_config(), tmp_path / "run", patience=HASTY, command=command) for _ in range(2)]
    starting = [asyncio.create_task(engine.start()) for engine in both]
    await until(lambda: all(engine.status.reason == "pretending to load" for engine in both))
    os.kill(pid := recorded_pid(tmp_path / "run"), signal.SIGUSR1)
    await asyncio.gather(*starting)
    assert recorded_pid(tmp_path / "run") == pid
    assert [engine.status.restarts for engine in both] == [0, 0]
    for engine in both:
        await engine.stop()
    await until(lambda: no_trace_of(pid, tmp_path / "run"))


async def test_files_left_by_a_killed_pod_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    async with running(tmp_path / "run"):
        os.kill(recorded_pid(tmp_path / "run"), 0)
    (tmp_path / "run" / "engine.sock").touch()
    (tmp_path / "run" / "engine.pid").write_text(str(os.getpid()))
    async with running(tmp_path / "run") as engine:
        assert engine.status.state is EngineState.READY


async def test_an_engine_ended_from_outside_is_started_again(tmp_path: Path) -> None:
    async with running(tmp_path / "run") as engine:
        os.kill(recorded_pid(tmp_path / "run"), signal.SIGTERM)
        await until(lambda: engine.status.restarts == 1 and engine.status.state is EngineState.READY)
