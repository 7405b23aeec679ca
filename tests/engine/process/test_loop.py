"""The step loop around a fake core: what happens before the next step, what is told, and how it ends."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.engine.base import EngineStats, Event, Finish, FinishReason, StepFailed, Token
from service.engine.fake import FakeCore, FakeScript
from service.engine.process.loop import StepLoop
from tests.support.engines import PATIENCE, a_request, fake_config


class Told:
    """What the loop emitted, for the test's thread."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[list[Event], EngineStats | None]] = queue.SimpleQueue()

    def __call__(self, events: list[Event], stats: EngineStats | None) -> None:
        self._queue.put((events, stats))

    def next(self) -> tuple[list[Event], EngineStats | None]:
        return self._queue.get(timeout=PATIENCE)

    def rest(self) -> list[tuple[list[Event], EngineStats | None]]:
        return [self._queue.get() for _ in range(self._queue.qsize())]

    def next_events(self) -> list[Event]:
        while True:
            if events := self.next()[0]:
                return events


@contextmanager
def looping(core: FakeCore, told: Told) -> Iterator[StepLoop]:
    loop = StepLoop(core, told)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        core.release()
        loop.stop()
        thread.join()


def test_the_first_thing_it_tells_are_statistics() -> None:
    told = Told()
    with looping(FakeCore(fake_config()), told):
        assert told.next() == ([], EngineStats(kv_blocks_total=4096))


def test_all_events_of_a_step_are_told_at_once() -> None:
    core, told = FakeCore(fake_config()), Told()
    loop = StepLoop(core, told)
    loop.submit(a_request([5], new=1, id_="a"))
    loop.submit(a_request([6], new=1, id_="b"))
    thread = threading.Thread(target=loop.run)
    thread.start()
    events = told.next_events()
    loop.stop()
    thread.join()
    assert [event.id for event in events] == ["a", "a", "b", "b"]


def test_an_idle_loop_makes_no_steps_and_says_nothing() -> None:
    core, told = FakeCore(fake_config()), Told()
    with looping(core, told) as loop:
        loop.submit(a_request(new=2))
        told.next_events()
        told.next_events()
    assert core.stats().steps == 2
    assert told.rest() == []


def test_going_idle_is_always_told_with_fresh_statistics() -> None:
    core, told = FakeCore(fake_config()), Told()
    with looping(core, told) as loop:
        told.next()
        loop.submit(a_request(new=3))
        emitted = [told.next()]
        while not any(isinstance(event, Finish) for event in emitted[-1][0]):
            emitted.append(told.next())
    stats = emitted[-1][1]
    assert stats is not None
    assert (stats.running, stats.generation_tokens) == (0, 3)


def test_a_cancel_takes_effect_before_the_next_step() -> None:
    core, told = FakeCore(fake_config(), FakeScript(hang_at_step=2)), Told()
    with looping(core, told) as loop:
        loop.submit(a_request(new=100, id_="a"))
        assert isinstance(told.next_events()[0], Token)
        # The second step hangs: whatever is cancelled now must not get a third token.
        loop.cancel("a")
        core.release()
        second = told.next_events()
        assert [type(event) for event in second] == [Token]
        assert told.next_events() == [Finish("a", FinishReason.CANCELLED)]
    assert core.stats().steps == 2


def test_a_rejection_is_told_without_waiting_for_a_step() -> None:
    core, told = FakeCore(fake_config()), Told()
    with looping(core, told) as loop:
        loop.submit(a_request([], new=1, id_="a"))
        (finish,) = told.next_events()
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.REJECTED
    assert core.stats().steps == 0


def test_the_age_of_a_step_grows_while_it_runs_and_is_nothing_between_steps() -> None:
    core, told = FakeCore(fake_config(), FakeScript(hang_at_step=1)), Told()
    with looping(core, told) as loop:
        assert loop.step_age == 0
        loop.submit(a_request(new=1))
        while not (first := loop.step_age):
            pass
        while loop.step_age <= first:
            pass
        core.release()
        told.next_events()
    assert loop.step_age == 0


def test_what_a_broken_step_leaves_behind_is_told_before_the_loop_ends() -> None:
    told = Told()
    loop = StepLoop(FakeCore(fake_config(), FakeScript(crash_at_step=1)), told)
    loop.submit(a_request(id_="a"))
    loop.submit(a_request(id_="b"))
    with pytest.raises(StepFailed):
        loop.run()
    ended = [event for events, _ in told.rest() for event in events]
    assert [(event.id, type(event)) for event in ended] == [("a", Finish), ("b", Finish)]


def test_stop_ends_the_loop_even_with_work_to_do() -> None:
    core, told = FakeCore(fake_config()), Told()
    with looping(core, told) as loop:
        loop.submit(a_request(new=30_000))
        told.next_events()
    assert not core.idle
