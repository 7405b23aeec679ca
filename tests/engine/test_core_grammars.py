"""Answers that keep to grammars, in the native core: each token is drawn of what may follow all before it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.base import EngineConfig, Finish, FinishReason, GenerationRequest, SamplingParams
from service.engine.core import NativeCore
from service.engine.steps.plan import OutOfMemory, StepPlan
from tests.engine.test_core import DEPTHS, NEVER, drain, finishes, info, outputs
from tests.support.rules import END, Rule, allowed, may_follow
from tests.support.runner import ContentPending, ContentRunner, expected_output


def core_of(runner: ContentRunner, depth: int, step_tokens: int = 8) -> NativeCore:
    config = EngineConfig(kind="native", model_dir="", max_queue=64, step_tokens=step_tokens)
    return NativeCore(runner, info(), config, depth=depth, clock=lambda: 0.0, allowed=allowed)


def request(name: str, prompt: Iterable[int], new: int = 12, seed: int = 0, *, stops: bool = True) -> GenerationRequest:
    return GenerationRequest(
        id=name,
        prompt_ids=list(prompt),
        max_new_tokens=new,
        stop_ids=[END] if stops else [],
        deadline=NEVER,
        sampling=SamplingParams(seed=seed),
    )


KEPT = [
    request("a", range(5)),
    request("long prompt", range(30), seed=3),
    request("short answer", [4], new=3, seed=4),
    request("same beginning", range(16), seed=5),
]
FREE = [
    request("free", range(5), seed=1, stops=False),
    request("free and long", range(25), new=20, stops=False),
    request("free again", range(16), new=9, seed=2, stops=False),
]
EXPECTED = {each.id: expected_output(each, may_follow) for each in KEPT} | {e.id: expected_output(e) for e in FREE}


def add_all(core: NativeCore) -> None:
    for kept, free in zip(KEPT, [*FREE, None], strict=True):
        assert core.add(kept, Rule()) == []
        assert free is None or core.add(free) == []


def test_the_rule_of_these_tests_ends_some_answers_and_cuts_others() -> None:
    assert {len(EXPECTED[each.id]) for each in KEPT} == {3, 7}
    assert all(set(EXPECTED[each.id]) != set(expected_output(each)) for each in KEPT)


@DEPTHS
@pytest.mark.parametrize("step_tokens", [1, 3, 8, 512])
@pytest.mark.parametrize("blocks", [14, 64])
def test_answers_keep_to_their_grammars_among_others_that_have_none(depth: int, step_tokens: int, blocks: int) -> None:
    core = core_of(ContentRunner(num_blocks=blocks), depth, step_tokens)
    for _ in range(2):  # the second time with a warm cache, and slots that were restricted
        add_all(core)
        events = drain(core)
        assert outputs(events) == EXPECTED
        assert {finishes(events)[each.id] for each in KEPT} == {FinishReason.STOP, FinishReason.LENGTH}


class Noting(ContentRunner):
    """Says what it is asked for, by the number of the step that is meant."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.said: list[tuple[str, int]] = []

    def begin(self, plan: StepPlan) -> ContentPending:
        number = len(self.plans)
        pending = super().begin(plan)
        self.said.append(("begin", number))
        return NotingPending(**vars(pending), said=self.said, number=number)

    def restrict(self, slots: list[int], allowed: NDArray[np.uint8]) -> None:
        super().restrict(slots, allowed)
        self.said.append(("restrict", len(self.plans) - 1))


@dataclass(eq=False, kw_only=True)
class NotingPending(ContentPending):
    said: list[tuple[str, int]]
    number: int

    def sample(self) -> None:
        super().sample()
        self.said.append(("sample", self.number))

    def tokens(self) -> list[int]:
        self.said.append(("tokens", self.number))
        return super().tokens()


def test_a_step_is_begun_ahead_beside_a_grammar_and_samples_what_may_follow_the_tokens_before_it() -> None:
    runner = Noting(num_blocks=64)
    core = core_of(runner, 1, step_tokens=64)
    core.add(request("kept", range(5), new=4), Rule())
    core.add(request("free", range(5), new=4, stops=False))
    drain(core)
    first, *later = [[("begin", n), ("tokens", n - 1), ("restrict", n), ("sample", n)] for n in range(4)]
    first.remove(("tokens", -1))
    assert runner.said == [*first[:1], *first[1:], *(said for step in later for said in step), ("tokens", 3)]


def test_what_an_answer_without_a_grammar_goes_on_with_is_sampled_ahead() -> None:
    runner = Noting(num_blocks=64)
    core = core_of(runner, 1, step_tokens=64)
    core.add(request("free", range(5), new=3, stops=False))
    drain(core)
    ahead = [("begin", 0), ("sample", 0), ("begin", 1), ("sample", 1), ("tokens", 0), ("begin", 2), ("sample", 2)]
    assert runner.said == [*ahead, ("tokens", 1), ("tokens", 2)]


@DEPTHS
def test_a_grammar_that_cannot_be_kept_to_any_longer_ends_its_answer_alone(depth: int) -> None:
    core = core_of(ContentRunner(num_blocks=64), depth)
    core.add(KEPT[0], Rule(breaks_after=2))
    core.add(KEPT[1], Rule())
    core.add(FREE[0])
    events = drain(core)
    given = outputs(events)
    assert given[KEPT[0].id] == EXPECTED[KEPT[0].id][:2]
    assert given[KEPT[1].id] == EXPECTED[KEPT[1].id]
    assert given[FREE[0].id] == EXPECTED[FREE[0].id]
    (broken,) = [event for event in events if getattr(event, "message", "")]
    assert broken == Finish(KEPT[0].id, FinishReason.REJECTED, "the rule is broken", of_grammar=True)


def test_a_token_that_was_not_allowed_is_the_engines_error_and_not_the_clients() -> None:
    core = core_of(ContentRunner(num_blocks=64), 0)
    rule = Rule(breaks_after=2)
    rule.is_ours = True
    core.add(KEPT[0], rule)
    assert finishes(drain(core)) == {KEPT[0].id: FinishReason.ERROR}


@pytest.mark.parametrize("where", ["fail_sample", "fail_restrict"])
def test_a_begun_step_that_finds_no_memory_to_sample_in_twice_ends_the_newest_answer_and_says_so(where: str) -> None:
    runner = ContentRunner(num_blocks=64)
    core = core_of(runner, 1, step_tokens=64)
    core.add(request("old", range(5), new=5, stops=False), Rule())
    core.add(request("new", range(5), new=5, stops=False), Rule())
    events = core.step()
    for _ in range(2):
        setattr(runner, where, OutOfMemory("it does not fit"))
        events += core.step()
        setattr(runner, where, None)
    events += drain(core)
    assert finishes(events) == {"old": FinishReason.LENGTH, "new": FinishReason.ERROR}


@DEPTHS
@pytest.mark.parametrize("where", ["fail_tokens", "fail_begin", "fail_sample", "fail_restrict", "fail_admit"])
@pytest.mark.parametrize("at", range(1, 9))
def test_a_step_without_memory_costs_one_answer_at_most_and_the_others_still_keep_to_theirs(
    depth: int, where: str, at: int
) -> None:
    runner = ContentRunner(num_blocks=64)
    core = core_of(runner, depth)
    add_all(core)
    events = [event for _ in range(at) for event in core.step()]
    setattr(runner, where, OutOfMemory("it does not fit"))
    events += drain(core)
    failed = {name for name, reason in finishes(events).items() if reason is FinishReason.ERROR}
    assert len(failed) <= 1
    assert len(finishes(events)) == len(EXPECTED)
    given = outputs(events)
    assert {name: given[name] for name in given if name not in failed} == {
        name: output for name, output in EXPECTED.items() if name not in failed
    }
