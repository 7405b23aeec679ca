"""What every engine promises, checked on every engine: in this process and in its own, fake, native and reference.

One engine of each kind serves all tests but the last ones, which stop theirs.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from service.engine.base import Engine, EngineConfig, EngineState, EngineStats, Event, FinishReason, SamplingParams
from service.engine.client import EngineClient
from service.engine.fake import FakeScript
from service.engine.sleep import SleepOnIdle
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.engines import (
    a_request,
    events_of,
    fake_config,
    finish_of,
    leave_after,
    reason_of,
    tokens_of,
    until,
)
from tests.support.local_engine import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = 512
LONG = 480
"""New tokens of a request that is not meant to reach its end."""
QUEUE = 32
SAMPLED = SamplingParams(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, seed=7)
KINDS = ["local-fake", "sleepy-fake", "process-fake", "process-native", "process-reference"]

Engines = FakeEngine | EngineClient | SleepOnIdle


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), Shape(max_positions=CONTEXT))


def config_of(kind: str, checkpoint: Path) -> EngineConfig:
    return fake_config(
        kind=kind,
        model_dir=str(checkpoint),
        device="cpu",
        dtype="float32",
        threads=1,
        max_context=CONTEXT,
        max_running=4,
        max_queue=QUEUE,
        block_size=16,
        kv_cache_tokens=4 * CONTEXT,
        log_level="warning",
    )


def make_engine(name: str, checkpoint: Path, run_dir: Path) -> Engines:
    place, kind = name.split("-")
    config = config_of(kind, checkpoint)
    if place == "local":
        return FakeEngine(config, FakeScript(step_seconds=0.01))
    if place == "sleepy":  # that never has the time to sleep; when it has: test_sleep.py
        return SleepOnIdle(lambda _: EngineClient(config, run_dir / "run"), idle_seconds=600, max_queue=QUEUE)
    return EngineClient(config, run_dir / "run")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Engines]:
    engine = make_engine(request.param, checkpoint, tmp_path_factory.mktemp(request.param))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def leaves_nothing_behind(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """After every test on the shared engine: no request is open, no slot taken, no block held."""
    yield
    if "engine" in request.fixturenames:
        engine: Engines = request.getfixturevalue("engine")
        assert engine.open_requests == 0
        await until(lambda: is_empty(engine.status.stats))
        assert engine.status.state is EngineState.READY


def is_empty(stats: EngineStats) -> bool:
    return stats.running == stats.waiting == stats.kv_blocks_used == 0


def most_at_once(engine: Engine) -> int:
    assert engine.status.info is not None
    return engine.status.info.max_running


async def test_a_ready_engine_says_what_it_is(engine: Engines) -> None:
    info = engine.status.info
    assert info is not None
    assert info.max_context == CONTEXT
    assert info.max_running >= 1
    assert info.device == "cpu"


@pytest.mark.parametrize("new", [1, 2, 17])
async def test_an_answer_has_as_many_tokens_as_were_asked_for_and_one_end(engine: Engines, new: int) -> None:
    request = a_request(new=new)
    events = await events_of(engine, request)
    assert len(tokens_of(events)) == new
    assert len(events) == new + 1
    assert reason_of(events) is FinishReason.LENGTH
    assert {event.id for event in events} == {request.id}


async def test_a_stop_id_is_the_last_token_and_ends_the_answer(engine: Engines) -> None:
    free = tokens_of(await events_of(engine, a_request(new=12)))
    stop = free[5]
    events = await events_of(engine, a_request(new=12, stop=[stop, 319]))
    assert reason_of(events) is FinishReason.STOP
    *before, last = tokens_of(events)
    assert last in {stop, 319}
    assert not {stop, 319} & set(before)


async def test_the_same_request_gets_the_same_answer(engine: Engines) -> None:
    for sampling in (SAMPLED, SamplingParams(temperature=0)):
        first, second = [tokens_of(await events_of(engine, a_request(new=10, sampling=sampling))) for _ in range(2)]
        assert first == second


async def test_requests_at_once_get_what_each_gets_alone(engine: Engines) -> None:
    prompts = [
        ([7, 8, 9], SAMPLED),
        ([20, 21, 22, 23, 24], SamplingParams(temperature=0)),
        (list(range(30, 70)), SAMPLED),
    ]
    alone = [tokens_of(await events_of(engine, a_request(p, new=9, sampling=s))) for p, s in prompts]
    together = await asyncio.gather(*(events_of(engine, a_request(p, new=9, sampling=s)) for p, s in prompts))
    assert [tokens_of(events) for events in together] == alone


async def test_the_statistics_count_prompts_and_tokens(engine: Engines) -> None:
    await until(lambda: is_empty(engine.status.stats))
    before = engine.status.stats
    await events_of(engine, a_request([5, 6, 7, 8], new=6))
    await until(lambda: engine.status.stats.generation_tokens >= before.generation_tokens + 6)
    after = engine.status.stats
    assert after.generation_tokens == before.generation_tokens + 6
    assert after.prompt_tokens == before.prompt_tokens + 4
    assert after.steps > before.steps


async def test_a_reader_that_leaves_frees_its_slot_long_before_the_answers_end(engine: Engines) -> None:
    await until(lambda: is_empty(engine.status.stats))
    before = engine.status.stats.generation_tokens
    read = await leave_after(engine, a_request(new=LONG), tokens=2)
    assert len(tokens_of(read)) == 2
    await until(lambda: engine.status.stats.generation_tokens > before and is_empty(engine.status.stats))
    assert engine.status.stats.generation_tokens - before < LONG // 2


async def test_a_cancelled_task_frees_its_slot_too(engine: Engines) -> None:
    reading = asyncio.create_task(events_of(engine, a_request(new=LONG)))
    await until(lambda: engine.status.stats.running)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert engine.open_requests == 0


async def test_a_request_that_still_waits_can_be_left(engine: Engines) -> None:
    running = [asyncio.create_task(events_of(engine, a_request(new=LONG))) for _ in range(most_at_once(engine))]
    await until(lambda: engine.status.stats.running == len(running))
    waiting = asyncio.create_task(events_of(engine, a_request(new=LONG)))
    await until(lambda: engine.status.stats.waiting == 1)
    waiting.cancel()
    await until(lambda: engine.status.stats.waiting == 0)
    assert engine.status.stats.running == len(running)
    await cancel_all(running)


async def test_an_iterator_closed_before_its_first_event_costs_nothing(engine: Engines) -> None:
    events = engine.submit(a_request(new=LONG))
    await events.aclose()
    assert engine.open_requests == 0


async def test_a_deadline_ends_an_answer_in_its_middle(engine: Engines) -> None:
    events = await events_of(engine, a_request(new=LONG, seconds=0.15))
    assert reason_of(events) is FinishReason.DEADLINE
    assert len(tokens_of(events)) < LONG


async def test_a_deadline_that_has_passed_ends_a_request_without_a_token(engine: Engines) -> None:
    events = await events_of(engine, a_request(seconds=0))
    assert tokens_of(events) == []
    assert reason_of(events) is FinishReason.DEADLINE


async def test_a_deadline_tells_whether_the_request_had_left_the_queue(engine: Engines) -> None:
    places = most_at_once(engine)
    taken = [asyncio.create_task(events_of(engine, a_request(new=LONG, seconds=2))) for _ in range(places)]
    await until(lambda: engine.status.stats.running == places)
    assert finish_of(await events_of(engine, a_request(seconds=0.2))).queued
    assert not any(finish_of(events).queued for events in await asyncio.gather(*taken))


async def test_one_request_more_than_may_wait_is_rejected_and_told_when_to_come_back(engine: Engines) -> None:
    places = most_at_once(engine) + QUEUE
    taken = [asyncio.create_task(events_of(engine, a_request(new=LONG))) for _ in range(places)]
    await until(lambda: engine.status.stats.running + engine.status.stats.waiting == places)
    rejected = await asyncio.gather(*(events_of(engine, a_request(new=LONG)) for _ in range(3)))
    for events in rejected:
        assert reason_of(events) is FinishReason.REJECTED
        assert finish_of(events).retry_after >= 1
        assert str(QUEUE) in finish_of(events).message
    await cancel_all(taken)


@pytest.mark.parametrize(
    ("prompt", "new", "number"),
    [
        ([1] * 100, CONTEXT - 99, str(CONTEXT)),
        ([], 1, "prompt_ids"),
        ([1], 0, "max_new_tokens"),
        ([-1], 1, "prompt_ids"),
    ],
    ids=["too long", "empty", "nothing asked for", "no token of the vocabulary"],
)
async def test_a_request_that_can_never_be_served_is_rejected_for_good(
    engine: Engines, prompt: list[int], new: int, number: str
) -> None:
    events = await events_of(engine, a_request(prompt, new=new))
    assert reason_of(events) is FinishReason.REJECTED
    assert finish_of(events).retry_after == 0
    assert number in finish_of(events).message


async def test_two_open_requests_cannot_have_one_id(engine: Engines) -> None:
    first = asyncio.create_task(events_of(engine, a_request(new=LONG, id_="same")))
    await until(lambda: engine.status.stats.running)
    assert reason_of(await events_of(engine, a_request(id_="same"))) is FinishReason.ERROR
    assert not first.done()
    await cancel_all([first])


async def test_thirty_requests_with_random_leavers_all_end_and_nothing_stays(engine: Engines) -> None:
    chance = random.Random(4)
    plans = [(chance.randint(1, 12), chance.choice([0, 1, 3, 100])) for _ in range(30)]

    async def one(new: int, read: int) -> list[Event]:
        return await leave_after(engine, a_request([chance.randint(3, 300)] * 5, new=new), tokens=read or 1)

    results = await asyncio.gather(*(one(new, read) for new, read in plans))
    for (new, read), events in zip(plans, results, strict=True):
        if max(read, 1) > new:
            assert reason_of(events) is FinishReason.LENGTH
            assert len(tokens_of(events)) == new


async def cancel_all(tasks: list[asyncio.Task[list[Event]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("name", KINDS[:-1])  # the reference differs in its core only, and takes long to load
async def test_stopping_ends_what_is_open_and_what_comes_later(name: str, checkpoint: Path, tmp_path: Path) -> None:
    engine = make_engine(name, checkpoint, tmp_path)
    assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR
    await engine.start()
    open_requests = [asyncio.create_task(events_of(engine, a_request(new=LONG))) for _ in range(6)]
    await until(lambda: engine.status.stats.running)
    await engine.stop()
    assert [reason_of(await events) for events in open_requests] == [FinishReason.ERROR] * 6
    assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR
    assert engine.status.state is EngineState.STOPPED
    await engine.stop()
