"""An engine that sleeps while nobody asks: its process really ends, and really comes back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.engine.base import EngineState as State
from service.engine.base import Event, FinishReason, Token
from service.engine.client import EngineClient, Patience
from service.engine.process import run_dir
from service.engine.sleep import SleepOnIdle
from service.errors import EngineFailed
from tests.support.engines import (
    PATIENCE,
    a_request,
    events_of,
    fake_config,
    finish_of,
    is_alive,
    leave_after,
    reason_of,
    recorded_pid,
    scripted,
    tokens_of,
    until,
)

IDLE = 0.2
LOAD = 0.5
"""Seconds that the second and later loads take: long enough to look at."""
HASTY = Patience(first_restart=0.01, starts=2, exit=2.0)
PLACES, QUEUE = 2, 3


@dataclass
class Clients:
    """Makes clients over one run directory: `first` is the first one's script, `later` that of all others."""

    run_dir: Path
    first: dict[str, object] = field(default_factory=dict)
    later: dict[str, object] = field(default_factory=lambda: {"load_seconds": LOAD})
    first_loads: list[float | None] = field(default_factory=list)

    def __call__(self, first_load: float | None) -> EngineClient:
        script = self.later if self.first_loads else self.first
        self.first_loads.append(first_load)
        config = fake_config(max_running=PLACES, max_queue=QUEUE)
        return EngineClient(config, self.run_dir, patience=HASTY, command=scripted(**script), first_load=first_load)


@asynccontextmanager
async def asleep(clients: Clients) -> AsyncIterator[SleepOnIdle]:
    """An engine that has just fallen asleep, stopped at the end whatever happens."""
    engine = SleepOnIdle(clients, IDLE, QUEUE)
    try:
        await engine.start()
        await until(lambda: engine.status.state is State.ASLEEP and not (clients.run_dir / "engine.pid").exists())
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
def clients(tmp_path: Path) -> Clients:
    return Clients(tmp_path / "run")


def asking(engine: SleepOnIdle, count: int = 1, seconds: float = 600.0) -> list[asyncio.Task[list[Event]]]:
    return [asyncio.create_task(events_of(engine, a_request(seconds=seconds))) for _ in range(count)]


async def test_the_process_ends_when_nobody_has_asked_for_long_enough(clients: Clients) -> None:
    engine = SleepOnIdle(clients, IDLE, QUEUE)
    await engine.start()
    began, pid, awake = time.monotonic(), recorded_pid(clients.run_dir), engine.status
    assert awake.state is State.READY
    await until(lambda: not is_alive(pid))
    assert time.monotonic() - began >= IDLE
    assert engine.status.state is State.ASLEEP
    assert engine.status.info == awake.info, "who asks for it is told what will answer"
    await engine.stop()


async def test_a_request_wakes_it_and_is_answered(clients: Clients) -> None:
    async with asleep(clients) as engine:
        events = await events_of(engine, a_request([11, 12], new=2))
        assert tokens_of(events) == [11, 12]
        assert reason_of(events) is FinishReason.LENGTH
        assert engine.status.state is State.READY
        assert engine.status.restarts == 0, "sleep is no failure"


async def test_the_first_token_tells_that_the_request_queued_while_the_engine_woke(clients: Clients) -> None:
    async with asleep(clients) as engine:
        first, *others = (e for e in await events_of(engine, a_request(new=3)) if isinstance(e, Token))
        assert first.queue_time >= LOAD
        assert [token.queue_time for token in others] == [0, 0]
        (usual,) = (e for e in await events_of(engine, a_request(new=1)) if isinstance(e, Token))
        assert usual.queue_time < LOAD, "awake, it waits for nothing"


async def test_all_who_ask_meanwhile_wait_for_one_process(clients: Clients) -> None:
    async with asleep(clients) as engine:
        tasks = asking(engine, PLACES + QUEUE)
        await until(lambda: engine.status.state is State.WAKING)
        assert engine.status.stats.waiting == engine.open_requests == PLACES + QUEUE
        await until(lambda: engine.status.reason == "pretending to load")
        assert {reason_of(await task) for task in tasks} == {FinishReason.LENGTH}
        assert len(clients.first_loads) == 2
        assert engine.open_requests == 0


async def test_one_more_than_may_wait_is_told_when_to_come_back(clients: Clients) -> None:
    clients.first, clients.later = {"told_seconds": 9}, {"load_seconds": 4}
    async with asleep(clients) as engine:
        began = time.monotonic()
        tasks = asking(engine, PLACES + QUEUE)
        await until(lambda: engine.open_requests == PLACES + QUEUE)
        refused = finish_of(await events_of(engine, a_request()))
        assert refused.reason is FinishReason.REJECTED
        assert 9 - (time.monotonic() - began) <= refused.retry_after <= 9, "as long as loading took the last time"
        assert "INTERNLM_MAX_QUEUE" in refused.message
        await until(lambda: engine.status.state is State.WAKING)
        await asyncio.sleep(2)
        back = finish_of(await events_of(engine, a_request())).retry_after
        assert 9 - (time.monotonic() - began) <= back <= 7, "and less when that has begun"
        assert {reason_of(await task) for task in tasks} == {FinishReason.LENGTH}


async def test_who_leaves_while_it_wakes_makes_room(clients: Clients) -> None:
    async with asleep(clients) as engine:
        (task,) = asking(engine)
        await until(lambda: engine.open_requests)
        task.cancel()
        await until(lambda: engine.open_requests == 0)
        await until(lambda: engine.status.state is State.READY)
        assert engine.status.stats.generation_tokens == 0, "and costs nothing"


async def test_a_deadline_that_passes_while_it_wakes_is_one_of_the_queue(clients: Clients) -> None:
    clients.later = {"load_seconds": 600}
    async with asleep(clients) as engine:
        end = finish_of(await events_of(engine, a_request(seconds=0.1)))
        assert end.reason is FinishReason.DEADLINE
        assert end.queued
        assert engine.status.state is State.WAKING, "the next one profits"


async def test_an_answer_that_takes_longer_than_the_idle_time_is_not_cut(clients: Clients) -> None:
    clients.later = {"step_seconds": IDLE / 4}
    async with asleep(clients) as engine:
        events = await events_of(engine, a_request(new=16))
        assert len(tokens_of(events)) == 16


async def test_it_sleeps_and_wakes_as_often_as_it_takes(clients: Clients) -> None:
    clients.later = {}
    async with asleep(clients) as engine:
        for _ in range(3):
            assert reason_of(await events_of(engine, a_request())) is FinishReason.LENGTH
            await until(lambda: engine.status.state is State.ASLEEP)
    assert clients.first_loads[0] is None
    assert all(seconds is not None for seconds in clients.first_loads[1:]), "a load knows what the first one took"


async def test_a_request_that_meets_the_end_of_the_process_waits_for_the_next_one(clients: Clients) -> None:
    engine = SleepOnIdle(clients, IDLE, QUEUE)
    await engine.start()
    pid = recorded_pid(clients.run_dir)
    os.kill(pid, signal.SIGSTOP)  # so that it ends late: it has to be killed
    await until(lambda: engine.status.state is State.ASLEEP)
    assert is_alive(pid)
    assert reason_of(await events_of(engine, a_request())) is FinishReason.LENGTH
    assert not is_alive(pid)
    await engine.stop()


async def test_an_engine_that_cannot_be_woken_has_failed_and_says_why(clients: Clients) -> None:
    clients.later = {"misconfigured": "the GPU is somebody else's now"}
    async with asleep(clients) as engine:
        end = finish_of(await events_of(engine, a_request()))
        assert end.reason is FinishReason.ERROR
        assert "somebody else's" in end.message
        assert engine.status.state is State.FAILED
        assert "somebody else's" in engine.status.reason
        assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR, "nobody waits for nothing"


async def test_an_engine_that_dies_while_it_wakes_is_not_said_to_be_on_its_way(clients: Clients) -> None:
    clients.later = {"broken": "the GPU's memory is somebody else's", "load_seconds": 0.3}
    async with asleep(clients) as engine:
        (task,) = asking(engine)
        await until(lambda: engine.status.state is State.WAKING)
        await until(lambda: engine.status.state is not State.WAKING)
        assert engine.status.state is State.RESTARTING
        assert not engine.status.state.takes_requests
        assert "somebody else's" in engine.status.reason
        assert reason_of(await task) is FinishReason.ERROR
        assert engine.status.state is State.FAILED


async def test_restarts_are_counted_on_over_a_sleep(clients: Clients) -> None:
    clients.first, clients.later = {"crash_at_step": 2}, {}
    engine = SleepOnIdle(clients, IDLE, QUEUE)
    await engine.start()
    await events_of(engine, a_request(new=8))
    await until(lambda: engine.status.restarts == 1 and engine.status.state is State.ASLEEP)
    assert reason_of(await events_of(engine, a_request())) is FinishReason.LENGTH
    assert engine.status.restarts == 1
    await engine.stop()


async def test_a_first_start_that_fails_is_raised(clients: Clients) -> None:
    clients.first = {"misconfigured": "no such model"}
    engine = SleepOnIdle(clients, IDLE, QUEUE)
    with pytest.raises(EngineFailed, match="no such model"):
        await engine.start()
    assert engine.status.state is State.FAILED
    await engine.stop()


async def test_an_engine_that_dies_awake_is_restarted_and_does_not_sleep_meanwhile(clients: Clients) -> None:
    clients.later = {"crash_at_step": 2, "reload_seconds": 4 * IDLE}
    async with asleep(clients) as engine:
        assert reason_of(await events_of(engine, a_request(new=8))) is FinishReason.ERROR
        seen = set()
        async with asyncio.timeout(PATIENCE):
            while engine.status.restarts < 1 or engine.status.state is not State.READY:
                seen.add(engine.status.state)
                await asyncio.sleep(0.01)
        assert State.RESTARTING in seen
        assert not seen & {State.ASLEEP, State.WAKING}


async def test_stopped_asleep_it_stays_so_and_refuses(clients: Clients) -> None:
    async with asleep(clients) as engine:
        await engine.stop()
        assert engine.status.state is State.STOPPED
        assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR
        assert len(clients.first_loads) == 1


async def test_stopped_while_it_wakes_it_leaves_nobody_waiting_and_no_process(clients: Clients) -> None:
    clients.later = {"load_seconds": 600}
    async with asleep(clients) as engine:
        tasks = asking(engine, 2)
        await until(lambda: engine.status.state is State.WAKING and run_dir.recorded_pid(clients.run_dir) is not None)
        pid = recorded_pid(clients.run_dir)
        await engine.stop()
        assert {reason_of(await task) for task in tasks} == {FinishReason.ERROR}
        assert not is_alive(pid)


async def test_a_reader_who_leaves_after_a_waking_frees_the_engine(clients: Clients) -> None:
    clients.later = {"step_seconds": 0.02}
    async with asleep(clients) as engine:
        await leave_after(engine, a_request(new=400), tokens=2)
        await until(lambda: engine.status.state is State.ASLEEP)
