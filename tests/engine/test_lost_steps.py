"""Launched steps that come to nothing: what others found of them in the prefix cache was never written."""

import pytest

from service.engine.base import Event, FinishReason
from service.engine.core import NativeCore
from service.engine.steps.plan import OutOfMemory
from tests.engine.test_core import core_of, drain, finishes, outputs, request
from tests.support.runner import ContentRunner, expected_output

TRUNK = [1] * 24
OTHERS = [request(name, [*TRUNK, number], new=4) for name, number in (("b", 3), ("c", 4))]


def losing(runner: ContentRunner, *, queue: int, rest: int) -> tuple[NativeCore, list[Event]]:
    """The first step has the trunk of `a`, which has a `rest`, is launched and will have lacked memory; then come those
    who find it."""
    core = core_of(runner, depth=1, queue=queue, step_tokens=24)
    assert core.add(request("a", [*TRUNK, *[2] * rest], new=4)) == []
    runner.fail_tokens = OutOfMemory("graph launch")
    events = core.step()
    for each in OTHERS:
        assert core.add(each) == []
    return core, events


def check(core: NativeCore, events: list[Event], whole: list[str]) -> None:
    """`a`, whose step was lost, leaves before it has written its blocks anew."""
    core._scheduler.check_integrity()
    events += core.cancel("a") + drain(core)
    for each in OTHERS:
        if each.id in whole:
            assert finishes(events)[each.id] is FinishReason.LENGTH
            assert outputs(events)[each.id] == expected_output(each)
    core._scheduler.check_integrity()


def test_who_was_admitted_before_the_loss_was_known_computes_all_of_its_prompt() -> None:
    """More came than may wait, so that all were admitted at once, without a step."""
    core, events = losing(ContentRunner(num_blocks=90), queue=1, rest=30)
    check(core, events + core.step(), ["b", "c"])


def test_who_was_planned_for_a_step_that_lacked_memory_as_well_computes_all_of_its_prompt() -> None:
    runner = ContentRunner(num_blocks=60)
    core, events = losing(runner, queue=8, rest=1)
    runner.fail_begin = OutOfMemory("full")
    events += core.step()
    assert finishes(events) == {"c": FinishReason.ERROR}, "the newest request alone"
    check(core, events, ["b"])


@pytest.mark.parametrize("depth", [0, 1])
def test_a_prompt_that_is_being_computed_lets_in_who_shares_it_and_then_needs_few_blocks(depth: int) -> None:
    """Of 16 blocks 12 are taken, 8 of them with what both begin with: without it there would be no room."""
    runner = ContentRunner(num_blocks=17, block_size=4)
    core = core_of(runner, depth, step_tokens=64)
    trunk = [1] * 32
    first, second = request("first", [*trunk, 2], new=13), request("second", [*trunk, 3], new=2)
    for each in (first, second):
        assert core.add(each) == []
    events = [event for _ in range(5) for event in core.step()]
    assert "second" in finishes(events)
    assert "first" not in finishes(events)
    events += drain(core)
    assert all(outputs(events)[each.id] == expected_output(each) for each in (first, second))
