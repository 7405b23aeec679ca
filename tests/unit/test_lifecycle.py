"""The lifecycle admits, counts, drains and says why."""

import asyncio

import pytest

from service.errors import NotReady
from service.lifecycle import Lifecycle, State


@pytest.mark.parametrize("state", [State.STARTING, State.LOADING, State.DRAINING, State.FAILED])
def test_only_a_ready_service_serves(state: State) -> None:
    lifecycle = Lifecycle()
    lifecycle.move(state, "because")
    with pytest.raises(NotReady, match=f"{state.value}: because") as caught, lifecycle.serving():
        pass
    assert caught.value.retry_after
    assert lifecycle.active == 0


def test_answers_are_counted_while_they_are_given() -> None:
    lifecycle = Lifecycle()
    lifecycle.move(State.READY)
    with lifecycle.serving(), lifecycle.serving():
        assert lifecycle.active == 2
    assert lifecycle.active == 0


def test_a_failing_answer_is_counted_out_too() -> None:
    lifecycle = Lifecycle()
    lifecycle.move(State.READY)
    with pytest.raises(ZeroDivisionError), lifecycle.serving():
        raise ZeroDivisionError
    assert lifecycle.active == 0


def test_draining_is_final() -> None:
    lifecycle = Lifecycle()
    lifecycle.begin_drain()
    lifecycle.move(State.READY)
    assert lifecycle.state is State.DRAINING


async def test_the_drain_waits_for_the_last_answer() -> None:
    lifecycle = Lifecycle()
    lifecycle.move(State.READY)
    finished: list[str] = []

    async def answer(release: asyncio.Event) -> None:
        with lifecycle.serving():
            await release.wait()
            finished.append("answer")

    release = asyncio.Event()
    task = asyncio.create_task(answer(release))
    await asyncio.sleep(0)
    lifecycle.begin_drain()
    waiting = asyncio.create_task(lifecycle.wait_idle(30))
    await asyncio.sleep(0)
    assert not waiting.done()
    release.set()
    assert await waiting
    assert finished == ["answer"]
    await task


async def test_the_drain_gives_up_after_its_time() -> None:
    lifecycle = Lifecycle()
    lifecycle.move(State.READY)
    with lifecycle.serving():
        assert not await lifecycle.wait_idle(0.01)
