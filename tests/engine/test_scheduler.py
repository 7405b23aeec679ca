"""The scheduler by itself: admission, the budget of a step, ends of requests. The tokens are made up by the tests."""

import math
from typing import Any

import pytest
from msgspec.structs import replace

from service.engine.admission import (
    RETRY_LEAST,
    RETRY_MOST,
    RETRY_UNMEASURED,
    CompletionRate,
    Limits,
    refusal,
)
from service.engine.base import Event, Finish, FinishReason, GenerationRequest, SamplingParams, Token
from service.engine.defaults import MOST_BIASED
from service.engine.kv_cache import BlockPool
from service.engine.scheduler import Scheduler
from service.engine.steps import pace
from service.engine.steps.plan import StepPlan
from tests.support.runner import planned_tokens, positions_of

SIZE = 4
VOCAB = 1000
STOP = 999
NEVER = 1e9


def request(name: str, prompt: int | list[int] = 3, new: int = 4, deadline: float = NEVER) -> GenerationRequest:
    """A request; a prompt given by its length has tokens of its own."""
    ids = prompt if isinstance(prompt, list) else [(97 * sum(map(ord, name)) + i) % 900 for i in range(prompt)]
    return GenerationRequest(
        id=name, prompt_ids=ids, max_new_tokens=new, stop_ids=[STOP, 998], deadline=deadline, sampling=SamplingParams()
    )


def scheduler(
    blocks: int = 65,
    running: int = 8,
    queue: int = 100,
    step_tokens: int = 16,
    context: int = 1000,
    prefix_cache: bool = True,
) -> Scheduler:
    pool = BlockPool(blocks, SIZE, prefix_cache=prefix_cache)
    limits = Limits(
        max_context=context,
        max_running=running,
        max_queue=queue,
        step_tokens=step_tokens,
        cache_tokens=pool.total * SIZE,
        vocab_size=VOCAB,
    )
    return Scheduler(limits, pool)


def added(it: Scheduler, *requests: GenerationRequest, now: float = 0.0) -> Scheduler:
    for each in requests:
        assert it.add(each, now) == []
    return it


def launch(it: Scheduler, now: float = 0.0) -> StepPlan:
    plan = it.plan(now)
    it.launched(plan)
    it.check_integrity()
    return plan


def commit(it: Scheduler, plan: StepPlan, token: int = 7, now: float = 0.0) -> list[Event]:
    events = it.commit(plan, [token] * len(plan.sampled), {}, now)
    it.check_integrity()
    return events


def step(it: Scheduler, token: int = 7, now: float = 0.0) -> list[Event]:
    return commit(it, launch(it, now), token, now)


def drain(it: Scheduler) -> list[Event]:
    events: list[Event] = []
    for _ in range(1000):
        if it.idle:
            break
        events += step(it)
    it.check_idle()
    return events


def finishes(events: list[Event]) -> dict[str, FinishReason]:
    return {e.id: e.reason for e in events if isinstance(e, Finish)}


def chunks(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(c.sequence.request.id, c.start, c.end) for c in plan.chunks]


# --- the life of one request ---


def test_a_request_gets_its_tokens_and_then_one_finish() -> None:
    events = drain(added(scheduler(), request("a", new=3)))
    assert events == [Token("a", 7), Token("a", 7), Token("a", 7), Finish("a", FinishReason.LENGTH)]


def test_one_new_token_needs_no_decode() -> None:
    it = added(scheduler(), request("a", prompt=5, new=1))
    plan = launch(it)
    assert (chunks(plan), plan.decodes) == ([("a", 0, 5)], [])
    assert finishes(commit(it, plan)) == {"a": FinishReason.LENGTH}


def test_a_stop_token_is_delivered_before_the_finish() -> None:
    it = added(scheduler(), request("a", new=9))
    step(it)
    assert step(it, token=998) == [Token("a", 998), Finish("a", FinishReason.STOP)]
    assert it.idle


def test_a_stop_token_as_the_last_possible_one_counts_as_stop() -> None:
    it = added(scheduler(), request("a", new=1))
    assert finishes(step(it, token=STOP)) == {"a": FinishReason.STOP}


def test_the_first_token_tells_queue_time_and_cached_tokens() -> None:
    it = scheduler(running=1)
    prompt = list(range(9))
    added(it, request("a", prompt, new=2), now=1.0)
    added(it, request("b", prompt, new=2), now=2.0)
    first = [e for now in (3.0, 4.0, 5.0, 6.0) for e in step(it, now=now) if isinstance(e, Token)]
    assert first == [Token("a", 7, 2.0, 0), Token("a", 7), Token("b", 7, 3.0, 8), Token("b", 7)]


def test_an_answer_is_reused_by_the_next_turn_of_its_chat() -> None:
    it = added(scheduler(), request("turn 1", list(range(6)), new=7))
    drain(it)
    # 6 prompt tokens and 6 of the 7 answer tokens are written: 12 positions, three full blocks
    added(it, request("turn 2", [*range(6), *[7] * 7, 1, 2], new=1))
    assert chunks(launch(it)) == [("turn 2", 12, 15)]


def test_without_the_prefix_cache_every_prompt_is_computed_in_full() -> None:
    it = scheduler(prefix_cache=False, running=1)
    added(it, request("a", list(range(9)), new=2), request("b", list(range(9)), new=2))
    drain(it)
    assert (it.stats().cached_tokens, it.stats().kv_blocks_cached) == (0, 0)


# --- the budget of a step ---


def test_a_long_prompt_is_computed_in_chunks_of_step_tokens() -> None:
    it = added(scheduler(step_tokens=16), request("a", prompt=40))
    assert [chunks(launch(it)) for _ in range(3)] == [[("a", 0, 16)], [("a", 16, 32)], [("a", 32, 40)]]


def test_decodes_come_first_and_prefill_gets_the_rest() -> None:
    it = added(scheduler(step_tokens=16), request("a", new=50), request("b", new=50))
    step(it)
    added(it, request("c", prompt=40))
    plan = launch(it)
    assert positions_of(plan.decodes) == {"a": 3, "b": 3}
    assert chunks(plan) == [("c", 0, 14)]


def test_several_prompts_share_a_step_in_order_of_arrival() -> None:
    it = added(scheduler(step_tokens=16), *(request(name, prompt=6) for name in "abcd"))
    assert chunks(launch(it)) == [("a", 0, 6), ("b", 0, 6), ("c", 0, 4)]
    assert chunks(launch(it)) == [("c", 4, 6), ("d", 0, 6)]


def test_prefill_goes_on_when_decodes_fill_the_budget() -> None:
    it = added(scheduler(step_tokens=4, running=8), *(request(f"r{i}", prompt=1, new=30) for i in range(6)))
    assert [len(launch(it).decodes) for _ in range(3)] == [0, 4, 6]
    added(it, request("late", prompt=10))
    plans = [launch(it) for _ in range(3)]
    assert [chunks(plan) for plan in plans] == [[("late", 0, 4)], [("late", 4, 8)], [("late", 8, 10)]]
    assert all(len(plan.decodes) == 6 for plan in plans)


@pytest.mark.parametrize("step_tokens", [2, 4, 16, 64])
def test_a_step_never_computes_more_than_its_budget_or_its_decodes_and_one_block(step_tokens: int) -> None:
    it = added(scheduler(step_tokens=step_tokens), *(request(f"r{i}", prompt=3 + i, new=6) for i in range(12)))
    while not it.idle:
        plan = launch(it)
        assert planned_tokens(plan) <= max(step_tokens, len(plan.decodes) + SIZE)
        commit(it, plan)


def test_nothing_is_planned_when_nothing_is_open() -> None:
    plan = scheduler().plan(0.0)
    assert (plan.chunks, plan.decodes, plan.sampled) == ([], [], [])


# --- planning ahead of the tokens ---


def test_steps_are_planned_without_the_tokens_of_the_steps_before() -> None:
    it = added(scheduler(), request("a", prompt=3, new=4))
    plans = [launch(it) for _ in range(5)]
    assert [positions_of(plan.decodes) for plan in plans] == [{}, {"a": 3}, {"a": 4}, {"a": 5}, {}]
    events = [event for plan in plans for event in commit(it, plan)]
    assert finishes(events) == {"a": FinishReason.LENGTH}
    assert len(events) == 5


def test_tokens_after_the_stop_token_are_dropped() -> None:
    it = added(scheduler(), request("a", new=9))
    first, second, third = launch(it), launch(it), launch(it)
    assert len(commit(it, first, token=STOP)) == 2
    assert commit(it, second) == commit(it, third) == []
    assert it.stats().generation_tokens == 1


def test_the_tokens_of_a_cancelled_request_are_dropped() -> None:
    it = added(scheduler(), request("a"), request("b"))
    plan = launch(it)
    it.cancel("a", 0.0)
    assert [event.id for event in commit(it, plan)] == ["b"]


def test_a_new_request_may_use_slot_and_blocks_of_one_that_is_still_in_a_step_in_flight() -> None:
    it = added(scheduler(running=1, blocks=4), request("a", prompt=3, new=9), request("b", prompt=3, new=9))
    flight = [launch(it), launch(it)]
    old = flight[0].chunks[0].sequence
    slot, blocks = old.slot, list(old.blocks)
    commit(it, flight[0], token=STOP)
    new = launch(it).chunks[0].sequence
    assert (new.slot, sorted(new.blocks)) == (slot, sorted(blocks))
    assert (old.slot, old.blocks) == (slot, blocks), "the step in flight still refers to them"
    assert commit(it, flight[1]) == []


def test_the_block_that_a_dropped_token_is_written_to_is_never_shared() -> None:
    """A step planned before the stop was known writes one position more; no published block holds it."""
    it = added(scheduler(), request("a", prompt=[1, 2, 3], new=9))
    first, second = launch(it), launch(it)
    commit(it, first, token=STOP)  # position 3, the last of block 0, is being written by `second`
    commit(it, second)
    added(it, request("b", prompt=[1, 2, 3, STOP, 5], new=1))
    assert chunks(launch(it)) == [("b", 0, 5)]


def test_a_prompt_can_be_shared_as_soon_as_its_step_is_launched() -> None:
    it = added(scheduler(), request("a", list(range(9)), new=9))
    launch(it)
    added(it, request("b", list(range(9)), new=9))
    assert chunks(launch(it)) == [("b", 8, 9)]


def test_a_prompt_in_several_chunks_can_be_shared_up_to_the_launched_ones() -> None:
    it = added(scheduler(step_tokens=6), request("a", list(range(20)), new=1))
    launch(it)
    it.cancel("a", 0.0)
    added(it, request("b", list(range(20)), new=1))
    assert chunks(launch(it)) == [("b", 4, 10)]


def test_a_withdrawn_step_is_planned_again_as_it_was() -> None:
    it = added(scheduler(step_tokens=8), request("a", prompt=3, new=9), request("b", prompt=20))
    step(it)
    plan = it.plan(0.0)
    it.withdraw(plan)
    again = it.plan(0.0)
    assert (chunks(again), positions_of(again.decodes)) == (chunks(plan), positions_of(plan.decodes))
    assert planned_tokens(again) == 8


def test_a_withdrawn_step_publishes_nothing() -> None:
    it = added(scheduler(), request("a", list(range(9)), new=1))
    it.withdraw(it.plan(0.0))
    it.cancel("a", 0.0)
    assert it.stats().kv_blocks_cached == 0
    added(it, request("b", list(range(9)), new=1))
    assert chunks(launch(it)) == [("b", 0, 9)]


# --- admission ---


def test_requests_wait_for_a_slot_in_order_of_arrival() -> None:
    it = added(scheduler(running=2), *(request(name, prompt=2, new=2) for name in "abcde"))
    launch(it)
    assert (it.stats().running, it.stats().waiting) == (2, 3)


def test_first_tokens_come_in_order_of_arrival() -> None:
    it = added(scheduler(running=3, blocks=12), *(request(f"r{i}", prompt=1 + 7 * i % 11, new=5) for i in range(20)))
    first = list(dict.fromkeys(e.id for e in drain(it) if isinstance(e, Token)))
    assert first == [f"r{i}" for i in range(20)]


def test_all_blocks_a_request_can_need_are_reserved_at_admission() -> None:
    it = added(scheduler(), request("a", prompt=5, new=12))
    launch(it)
    assert it.stats().kv_blocks_used == 4  # 5 + 12 - 1: the last token is never written


def test_a_request_that_does_not_fit_yet_is_not_overtaken() -> None:
    it = added(scheduler(blocks=9), request("a", prompt=20, new=4), request("big", prompt=30, new=2))
    step(it)
    added(it, request("small", prompt=1, new=1))
    step(it)
    assert (it.stats().running, it.stats().waiting) == (1, 2)
    it.cancel("big", 0.0)
    assert chunks(launch(it)) == [("small", 0, 1)]


@pytest.mark.parametrize(
    ("prompt", "new", "says"),
    [
        (50, 15, ["50 prompt tokens", "max_new_tokens 15", "65", "64", "INTERNLM_MAX_CONTEXT"]),
        (1, 64, ["65", "64", "max_context"]),
        (40, 20, ["40 prompt tokens", "max_new_tokens 20", "60", "40", "INTERNLM_KV_CACHE_TOKENS"]),
        (0, 5, ["prompt_ids is empty"]),
        (5, 0, ["max_new_tokens is 0"]),
        (5, -1, ["max_new_tokens is -1"]),
    ],
)
def test_a_request_that_can_never_be_served_is_rejected_with_the_numbers(
    prompt: int, new: int, says: list[str]
) -> None:
    it = scheduler(blocks=11, context=64)
    (event,) = it.add(request("a", prompt=prompt, new=new), 0.0)
    assert isinstance(event, Finish)
    assert (event.reason, event.retry_after) == (FinishReason.REJECTED, 0)
    assert [part for part in says if part not in event.message] == []
    assert it.idle


@pytest.mark.parametrize("tokens", [[VOCAB], [-1], list(range(MOST_BIASED + 1))], ids=["above", "below", "too many"])
def test_a_bias_that_would_harm_the_device_is_rejected(tokens: list[int]) -> None:
    it = scheduler(blocks=11, context=64)
    asked = request("a")
    biased = replace(asked, sampling=SamplingParams(logit_bias=tuple((token, 1.0) for token in tokens)))
    (event,) = it.add(biased, 0.0)
    assert isinstance(event, Finish)
    assert (event.reason, event.retry_after) == (FinishReason.REJECTED, 0)
    assert "logit_bias takes at most" in event.message


@pytest.mark.parametrize(
    ("values", "says"),
    [({"top_k": 2**31}, "top_k"), ({"top_k": -1}, "top_k"), ({"min_p": -0.5}, "min_p"), ({"min_p": math.nan}, "min_p")],
)
def test_what_no_step_can_draw_by_is_rejected_before_one_fails_all(values: dict[str, Any], says: str) -> None:
    (event,) = scheduler().add(replace(request("a"), sampling=SamplingParams(**values)), 0.0)
    assert isinstance(event, Finish)
    assert (event.reason, event.retry_after) == (FinishReason.REJECTED, 0)
    assert event.message.startswith(f"{says} is ")


@pytest.mark.parametrize(("prompt", "new"), [(40, 1), (1, 40), (20, 21)])
def test_a_request_that_needs_the_whole_cache_is_served(prompt: int, new: int) -> None:
    it = added(scheduler(blocks=11, context=64), request("a", prompt=prompt, new=new))
    assert finishes(drain(it)) == {"a": FinishReason.LENGTH}


@pytest.mark.parametrize("token", [-1, VOCAB, VOCAB + 5])
def test_tokens_outside_the_vocabulary_are_rejected(token: int) -> None:
    limits = Limits(max_context=99, max_running=1, max_queue=1, step_tokens=16, cache_tokens=99, vocab_size=VOCAB)
    message = refusal(request("a", [1, token, 2]), limits)
    assert message is not None
    assert f"vocabulary of {VOCAB}" in message
    assert refusal(request("a", [0, VOCAB - 1]), limits) is None
    forced = refusal(replace(request("a", [1]), forced=[2, token]), limits)
    assert forced is not None
    assert forced.startswith("forced holds a token outside")
    assert refusal(replace(request("a", [1]), forced=[0, VOCAB - 1]), limits) is None


def test_an_id_that_is_open_is_rejected_and_the_open_request_goes_on() -> None:
    it = added(scheduler(), request("a", new=3))
    (event,) = it.add(request("a"), 0.0)
    assert isinstance(event, Finish)
    assert "'a' is open already" in event.message
    assert finishes(drain(it)) == {"a": FinishReason.LENGTH}
    added(it, request("a"))  # an id that ended may come again


def test_one_request_more_than_may_wait_is_rejected() -> None:
    it = added(scheduler(running=1, queue=2), *(request(name) for name in "abc"))
    (event,) = it.add(request("d"), 0.0)
    assert isinstance(event, Finish)
    assert event.reason is FinishReason.REJECTED
    assert event.retry_after == RETRY_UNMEASURED
    assert "2 requests are waiting" in event.message
    assert "INTERNLM_MAX_QUEUE" in event.message
    assert set(finishes(drain(it))) == set("abc")


def test_a_burst_is_not_rejected_while_there_are_slots() -> None:
    it = added(scheduler(running=6, queue=2), *(request(f"r{i}") for i in range(8)))
    assert finishes(it.add(request("one too many"), 0.0)) == {"one too many": FinishReason.REJECTED}


def test_without_a_queue_a_request_is_taken_when_it_can_run_at_once() -> None:
    it = added(scheduler(running=2, queue=0), request("a"), request("b"))
    assert finishes(it.add(request("c"), 0.0)) == {"c": FinishReason.REJECTED}
    drain(it)
    added(it, request("d"))


def test_a_place_in_the_queue_is_free_again_when_a_waiting_request_is_cancelled() -> None:
    it = added(scheduler(running=1, queue=1), request("a"), request("b"))
    assert it.add(request("c"), 0.0)
    it.cancel("b", 0.0)
    added(it, request("d"))
    assert list(finishes(drain(it))) == ["a", "d"]


# --- when to come back ---


@pytest.mark.parametrize(
    ("per_second", "ahead", "seconds"), [(1.0, 9, 10), (4.0, 9, 3), (100.0, 9, RETRY_LEAST), (0.01, 9, RETRY_MOST)]
)
def test_retry_after_is_what_the_queue_needs_at_the_measured_rate(per_second: float, ahead: int, seconds: int) -> None:
    rate = CompletionRate()
    rate.resume(1000.0)
    for i in range(1, 101):
        rate.count(1000.0 + i / per_second)
    assert rate.retry_after(ahead, 1000.0 + 100 / per_second) == pytest.approx(seconds, abs=1)


def test_time_without_work_does_not_slow_the_measured_rate() -> None:
    rate = CompletionRate()
    for start in (0.0, 90_000.0):
        rate.resume(start)
        for i in range(1, 51):
            rate.count(start + i)
    assert rate.retry_after(19, 90_050.0) == pytest.approx(20, abs=1)


def test_requests_that_end_together_count_as_many() -> None:
    rate = CompletionRate()
    rate.resume(0.0)
    for second in (10.0, 20.0, 30.0):
        for _ in range(40):
            rate.count(second)
    assert rate.retry_after(39, 30.0) == pytest.approx(10, abs=3)


def test_a_rate_that_drops_is_noticed() -> None:
    rate = CompletionRate()
    rate.resume(0.0)
    for i in range(1, 51):
        rate.count(i / 10)
    busy = rate.retry_after(20, 5.0)
    assert rate.retry_after(20, 65.0) > busy


def test_the_rate_is_measured_from_the_requests_that_end() -> None:
    it = scheduler(running=1, queue=4)
    now = 0.0
    for i in range(20):
        added(it, request(f"r{i}", new=1), now=now)
        now += 2.0
        step(it, now=now)
    added(it, *(request(f"w{i}") for i in range(4)), now=now)
    it.plan(now)
    added(it, request("last"), now=now)
    (event,) = it.add(request("too many"), now)
    assert isinstance(event, Finish)
    assert event.retry_after == pytest.approx(10, abs=1)


# --- ends that come from outside ---


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_cancelled_request_frees_its_slot_and_blocks(steps: int) -> None:
    it = added(scheduler(step_tokens=8), request("a", prompt=12, new=9))
    for _ in range(steps):
        step(it)
    assert it.cancel("a", 0.0) == [Finish("a", FinishReason.CANCELLED)]
    it.check_idle()
    assert it.cancel("a", 0.0) == []


def test_cancelling_what_is_unknown_does_nothing() -> None:
    assert scheduler().cancel("nobody", 0.0) == []


def test_requests_past_their_deadline_end_wherever_they_are() -> None:
    it = scheduler(running=1)
    added(it, request("running", deadline=10.0), request("waiting", deadline=5.0), request("patient"))
    step(it)
    assert it.expire(4.9) == []
    assert finishes(it.expire(5.0)) == {"waiting": FinishReason.DEADLINE}
    assert finishes(it.expire(11.0)) == {"running": FinishReason.DEADLINE}
    assert finishes(drain(it)) == {"patient": FinishReason.LENGTH}


def test_fail_ends_every_request_once_and_forgets_the_cache() -> None:
    it = added(scheduler(running=2, queue=9), *(request(name, prompt=9) for name in "abcd"))
    plan = launch(it)
    assert it.stats().kv_blocks_cached + it.stats().kv_blocks_used > 0
    events = it.fail("the device is gone", 0.0)
    assert finishes(events) == dict.fromkeys("abcd", FinishReason.ERROR)
    assert {e.message for e in events if isinstance(e, Finish)} == {"the device is gone"}
    it.check_idle()
    it.check_integrity()
    assert it.stats().kv_blocks_cached == 0
    assert commit(it, plan) == []


def test_a_long_prompt_that_was_passed_does_not_wait_for_the_blocks_that_a_short_one_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "LONG_PROMPT", 20)
    it = added(scheduler(blocks=101, step_tokens=16), request("long", 100, new=150))
    step(it)
    added(it, request("fits", 40, new=10), request("short", 10, new=300))
    begun = [chunk.sequence.request.id for _ in range(12) for chunk in stepped(it).chunks]
    assert "fits" in begun
    assert "short" not in begun


def stepped(it: Scheduler) -> StepPlan:
    plan = launch(it)
    commit(it, plan)
    return plan


def test_after_a_step_that_did_not_fit_steps_are_half_as_large_and_grow_again() -> None:
    it = added(scheduler(step_tokens=16), request("a", 200, new=1))
    plan = it.plan(0.0)
    it.withdraw(plan)
    it.shrink(plan)
    assert [planned_tokens(launch(it)) for _ in range(10)] == [8, 9, 10, 11, 12, 13, 14, 15, 16, 16]


def test_steps_that_did_not_fit_one_after_the_other_leave_the_smaller_size() -> None:
    """The second one may have been launched before the first one was known to be too large."""
    it = added(scheduler(step_tokens=16), request("a", 200, new=1))
    large = it.plan(0.0)
    it.withdraw(large)
    it.shrink(large)
    small = it.plan(0.0)
    it.withdraw(small)
    it.shrink(small)
    it.shrink(large)
    assert planned_tokens(launch(it)) == 4


def test_large_steps_are_back_after_some_hundred_that_fit() -> None:
    it = added(scheduler(step_tokens=2048, blocks=60_000, context=250_000), request("a", 200_000, new=1))
    for _ in range(5):
        plan = it.plan(0.0)
        it.withdraw(plan)
        it.shrink(plan)
    sizes = [planned_tokens(launch(it)) for _ in range(230)]
    assert (sizes[0], sizes[-1]) == (64, 2048)


def test_a_step_is_never_too_small_for_a_block_of_a_prompt() -> None:
    it = added(scheduler(step_tokens=16), request("a", 200, new=1))
    for expected in (16, 8, SIZE, SIZE):
        plan = it.plan(0.0)
        assert planned_tokens(plan) == expected
        it.withdraw(plan)
        it.shrink(plan)


def test_decodes_that_do_not_fit_say_nothing_of_prompts() -> None:
    it = added(scheduler(step_tokens=16), request("a", 3))
    plan = launch(it)
    it.commit(plan, [1], {}, 0.0)
    decodes = it.plan(0.0)
    it.withdraw(decodes)
    it.shrink(decodes)
    assert planned_tokens(launch(added(it, request("b", 100)))) == 16


def test_fail_newest_ends_only_the_request_admitted_last() -> None:
    it = added(scheduler(running=2), *(request(name, new=2) for name in "abc"))
    launch(it)
    assert finishes(it.fail_newest("no memory", 0.0)) == {"b": FinishReason.ERROR}
    assert scheduler().fail_newest("no memory", 0.0) == []


# --- what it tells ---


def test_stats_count_requests_blocks_and_tokens() -> None:
    it = scheduler(running=1, blocks=20)
    added(it, request("a", list(range(9)), new=2), request("b", list(range(9)), new=2))
    plan = launch(it)
    before = it.stats()
    assert (before.running, before.waiting, before.kv_blocks_used, before.kv_blocks_total) == (1, 1, 3, 19)
    commit(it, plan)
    drain(it)
    after = it.stats()
    assert (after.running, after.waiting, after.kv_blocks_used, after.kv_blocks_cached) == (0, 0, 0, 2)
    assert (after.prompt_tokens, after.cached_tokens, after.generation_tokens, after.steps) == (18, 8, 4, 4)


def test_a_leak_is_noticed_when_idle() -> None:
    it = added(scheduler(), request("a"))
    launch(it)
    it._free_slots.append(it._open["a"].slot)
    with pytest.raises(AssertionError, match="slot is lost or taken twice"):
        it.check_integrity()
    it.cancel("a", 0.0)
    with pytest.raises(AssertionError, match="a slot is taken"):
        it.check_idle()
