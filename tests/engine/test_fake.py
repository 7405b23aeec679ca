"""The fake engine: what it says, its queue and its scripted failures; as a bare core, and in this process."""

import asyncio

import pytest

from service.engine.base import EngineState, Event, Finish, FinishReason, StepFailed, Token
from service.engine.fake import FakeCore, FakeScript, echo
from service.errors import EngineFailed
from tests.support.engines import a_request, events_of, fake_config, finish_of, leave_after, reason_of, tokens_of, until
from tests.support.local_engine import FakeEngine


def run_to_end(core: FakeCore) -> list[Event]:
    events: list[Event] = []
    while not core.idle:
        events += core.step()
    return events


@pytest.mark.parametrize(
    ("prompt", "stop", "answer"),
    [
        ([5, 6, 7], [2, 9], [5, 6, 7, 2]),
        ([5, 2, 7, 9], [2, 9], [5, 7, 2]),
        ([2], [2], [2]),
        ([5, 6], [], [5, 6]),
    ],
)
def test_the_answer_is_the_prompt_without_stop_ids_and_then_the_first_stop_id(
    prompt: list[int], stop: list[int], answer: list[int]
) -> None:
    assert echo(a_request(prompt, stop=stop)) == answer


def test_an_answer_ends_with_its_stop_id_and_one_finish() -> None:
    core = FakeCore(fake_config())
    assert core.add(a_request([5, 6], stop=[2], new=100, id_="r")) == []
    events = run_to_end(core)
    assert tokens_of(events) == [5, 6, 2]
    assert reason_of(events) is FinishReason.STOP


def test_without_a_stop_id_the_prompt_is_said_again_until_the_length_is_reached() -> None:
    core = FakeCore(fake_config())
    core.add(a_request([5, 6], new=5))
    events = run_to_end(core)
    assert tokens_of(events) == [5, 6, 5, 6, 5]
    assert reason_of(events) is FinishReason.LENGTH


def test_requests_run_together_up_to_max_running_and_the_next_one_takes_over_the_slot() -> None:
    core = FakeCore(fake_config(max_running=2))
    for name in ("a", "b", "c"):
        core.add(a_request(new=2, id_=name))
    assert [event.id for event in core.step()] == ["a", "b"]
    assert (core.stats().running, core.stats().waiting) == (2, 1)
    core.step()
    assert [event.id for event in core.step()] == ["c"]


def test_the_first_token_tells_how_long_the_request_was_queued() -> None:
    core = FakeCore(fake_config(max_running=1))
    core.add(a_request(new=1, id_="a"))
    core.add(a_request(new=2, id_="b"))
    first, second = [event for event in run_to_end(core) if isinstance(event, Token) and event.id == "b"]
    assert first.queue_time > 0
    assert second.queue_time == 0


@pytest.mark.parametrize(("max_queue", "taken"), [(0, 2), (1, 3), (5, 7)])
def test_as_many_requests_wait_as_may_wait_and_one_more_is_rejected_with_a_time_to_retry(
    max_queue: int, taken: int
) -> None:
    core = FakeCore(fake_config(max_running=2, max_queue=max_queue))
    assert [core.add(a_request()) for _ in range(taken)] == [[]] * taken
    (rejected,) = core.add(a_request())
    assert isinstance(rejected, Finish)
    assert rejected.reason is FinishReason.REJECTED
    assert rejected.retry_after >= 1
    assert str(max_queue) in rejected.message


def test_a_request_that_can_never_fit_is_rejected_with_both_numbers() -> None:
    core = FakeCore(fake_config(max_context=16))
    (rejected,) = core.add(a_request([1] * 10, new=7))
    assert isinstance(rejected, Finish)
    assert rejected.reason is FinishReason.REJECTED
    assert "17" in rejected.message
    assert "16" in rejected.message
    assert core.idle


def test_a_cancelled_request_says_no_more_whether_it_ran_or_waited() -> None:
    core = FakeCore(fake_config(max_running=1))
    core.add(a_request(new=100, id_="running"))
    core.add(a_request(new=100, id_="waiting"))
    core.step()
    assert core.cancel("waiting") == [Finish("waiting", FinishReason.CANCELLED)]
    assert core.cancel("running") == [Finish("running", FinishReason.CANCELLED)]
    assert core.cancel("running") == []
    assert core.cancel("never seen") == []
    assert core.idle
    assert core.stats().kv_blocks_used == 0


def test_a_deadline_ends_a_request_that_runs_and_one_that_waits() -> None:
    core = FakeCore(fake_config(max_running=1))
    core.add(a_request(new=100, id_="running", seconds=0))
    core.add(a_request(new=100, id_="waiting", seconds=0))
    core.add(a_request(new=1, id_="in time"))
    late, later, token, finish = run_to_end(core)
    assert [(event.id, event.reason) for event in (late, later) if isinstance(event, Finish)] == [
        ("running", FinishReason.DEADLINE),
        ("waiting", FinishReason.DEADLINE),
    ]
    assert token.id == finish.id == "in time"


def test_a_scripted_crash_ends_every_open_request() -> None:
    core = FakeCore(fake_config(max_running=1), FakeScript(crash_at_step=2))
    core.add(a_request(id_="a"))
    core.add(a_request(id_="b"))
    core.step()
    with pytest.raises(StepFailed, match="crash at step 2") as failure:
        core.step()
    assert [event.id for event in failure.value.events] == ["a", "b"]
    assert core.idle


def test_the_statistics_count_what_was_done() -> None:
    core = FakeCore(fake_config(max_running=4, max_context=128, block_size=64))
    core.add(a_request([5, 6, 7], new=70))
    core.step()
    stats = core.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.steps) == (3, 1, 1)
    assert (stats.kv_blocks_total, stats.kv_blocks_used) == (8, 2)


async def test_a_fake_engine_answers_in_this_process() -> None:
    engine = FakeEngine()
    await engine.start()
    assert engine.status.state is EngineState.READY
    assert engine.status.info is not None
    assert tokens_of(await events_of(engine, a_request([5, 6], stop=[2]))) == [5, 6, 2]
    await engine.stop()
    assert engine.status.state is EngineState.STOPPED


async def test_loading_is_told_by_its_phase_and_a_request_meanwhile_ends_at_once() -> None:
    engine = FakeEngine(loads=False)
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.state is EngineState.LOADING)
    assert engine.status.reason == "pretending to load"
    assert "loading" in finish_of(await events_of(engine, a_request())).message
    engine.finish_loading()
    await starting
    assert reason_of(await events_of(engine, a_request())) is FinishReason.LENGTH
    await engine.stop()


async def test_a_crash_ends_open_requests_and_fails_the_engine_with_the_reason() -> None:
    engine = FakeEngine(script=FakeScript(crash_at_step=3))
    await engine.start()
    results = await asyncio.gather(*(events_of(engine, a_request(new=100)) for _ in range(3)))
    assert [reason_of(events) for events in results] == [FinishReason.ERROR] * 3
    await until(lambda: engine.status.state is EngineState.FAILED)
    assert "crash at step 3" in engine.status.reason
    assert reason_of(await events_of(engine, a_request())) is FinishReason.ERROR
    await engine.stop()


async def test_a_step_that_hangs_makes_the_engine_stuck_until_it_ends() -> None:
    engine = FakeEngine(fake_config(step_timeout=0.05), FakeScript(hang_at_step=2))
    await engine.start()
    reading = asyncio.create_task(events_of(engine, a_request(new=4)))
    await until(lambda: engine.status.state is EngineState.STUCK)
    assert "a step of the engine" in engine.status.reason
    assert "stuck" in finish_of(await events_of(engine, a_request())).message
    engine.release()
    assert reason_of(await reading) is FinishReason.LENGTH
    assert engine.status.state is EngineState.READY
    await engine.stop()


async def test_a_request_outlives_its_deadline_by_little_even_when_the_engine_hangs() -> None:
    engine = FakeEngine(script=FakeScript(hang_at_step=1))
    await engine.start()
    assert reason_of(await events_of(engine, a_request(seconds=-2))) is FinishReason.DEADLINE
    await engine.stop()


async def test_a_model_that_cannot_be_loaded_is_the_reason_why_start_fails() -> None:
    class Unloadable(FakeEngine):
        def _build(self, progress: object) -> FakeCore:
            raise FileNotFoundError("no config.json")

    engine = Unloadable()
    with pytest.raises(EngineFailed, match=r"no config\.json"):
        await engine.start()
    assert engine.status.state is EngineState.FAILED
    await engine.stop()


async def test_stopping_ends_open_requests() -> None:
    engine = FakeEngine(script=FakeScript(step_seconds=0.01))
    await engine.start()
    reading = asyncio.create_task(events_of(engine, a_request(new=10_000)))
    await until(lambda: engine.status.stats.running)
    await engine.stop()
    assert reason_of(await reading) is FinishReason.ERROR


async def test_stopping_before_it_is_ready_leaves_start_with_an_error() -> None:
    engine = FakeEngine(loads=False)
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.status.state is EngineState.LOADING)
    await engine.stop()
    with pytest.raises(EngineFailed, match="stopped"):
        await starting


async def test_one_hundred_readers_that_leave_early_leave_nothing_behind() -> None:
    engine = FakeEngine(fake_config(max_running=16), FakeScript(step_seconds=0.001))
    await engine.start()
    await asyncio.gather(*(leave_after(engine, a_request(new=10_000), tokens=2) for _ in range(100)))
    assert engine.open_requests == 0
    await until(lambda: engine.status.stats.running == engine.status.stats.waiting == 0)
    await engine.stop()
