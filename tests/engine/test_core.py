"""The native core over a runner that reads its whole context back out of the blocks, in step and one step ahead."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from service.engine.base import (
    Core,
    EngineConfig,
    EngineInfo,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    GpuMemory,
    SamplingParams,
    StepFailed,
    Token,
)
from service.engine.core import NativeCore
from service.engine.steps.pace import PrefillPace
from service.engine.steps.plan import OutOfMemory, Pending, StepPlan
from tests.support.runner import VOCAB, ContentPending, ContentRunner, expected_output

NEVER = 1e9
DEPTHS = pytest.mark.parametrize("depth", [0, 1, 2])


def info(max_context: int = 200, max_running: int = 4) -> EngineInfo:
    return EngineInfo(
        kind="native", device="cpu", dtype="none", max_context=max_context, max_running=max_running, vocab_size=VOCAB
    )


def core_of(
    runner: ContentRunner,
    depth: int = 0,
    *,
    queue: int = 64,
    step_tokens: int = 8,
    prefix_cache: bool = True,
    clock: Callable[[], float] = lambda: 0.0,
) -> NativeCore:
    config = EngineConfig(
        kind="native", model_dir="", max_queue=queue, step_tokens=step_tokens, prefix_cache=prefix_cache
    )
    return NativeCore(runner, info(), config, depth=depth, clock=clock)


def request(
    name: str, prompt: Iterable[int], new: int = 6, stop: Iterable[int] = (), seed: int = 0, deadline: float = NEVER
) -> GenerationRequest:
    return GenerationRequest(
        id=name,
        prompt_ids=list(prompt),
        max_new_tokens=new,
        stop_ids=list(stop),
        deadline=deadline,
        sampling=SamplingParams(seed=seed),
    )


def added(core: NativeCore, *requests: GenerationRequest) -> NativeCore:
    for each in requests:
        assert core.add(each) == []
    return core


def drain(core: NativeCore) -> list[Event]:
    events: list[Event] = []
    for _ in range(1000):
        if core.idle:
            return events
        events += core.step()
    raise AssertionError("the core does not come to rest")


def outputs(events: list[Event]) -> dict[str, list[int]]:
    given: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, Token):
            given.setdefault(event.id, []).append(event.token)
    return given


def finishes(events: list[Event]) -> dict[str, FinishReason]:
    return {event.id: event.reason for event in events if isinstance(event, Finish)}


MIXED = [
    request("short", [5], new=3),
    request("long", range(30), new=4, seed=1),
    request("one token", range(7), new=1),
    request("same prompt", range(30), new=9, seed=1),
    request("branch", [*range(16), 1, 2, 3], new=12),
    request("stops", range(40, 50), new=40, stop=range(0, VOCAB, 7)),
    request("whole blocks", range(8), new=8),
]


@DEPTHS
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("step_tokens", [1, 3, 8, 512])
@pytest.mark.parametrize("blocks", [14, 64])
def test_every_request_gives_in_company_what_it_gives_alone(
    depth: int, prefix_cache: bool, step_tokens: int, blocks: int
) -> None:
    core = core_of(ContentRunner(num_blocks=blocks), depth, step_tokens=step_tokens, prefix_cache=prefix_cache)
    for _ in range(2):  # the second time with a warm cache
        events = drain(added(core, *MIXED))
        assert outputs(events) == {each.id: expected_output(each) for each in MIXED}
        assert len(finishes(events)) == len(MIXED)


def test_the_runner_of_these_tests_sees_one_wrong_position_in_a_block() -> None:
    """Else the equal outputs above would prove nothing."""
    runner = ContentRunner()
    core = added(core_of(runner), request("a", range(6), new=8))
    events = core.step()
    block = runner.plans[0].chunks[0].sequence.blocks[0]
    runner._memory[block][1] += 1
    assert outputs(events + drain(core))["a"] != expected_output(request("a", range(6), new=8))


def test_native_core_is_a_core() -> None:
    core: Core = core_of(ContentRunner())
    assert core.info == info()
    assert core.idle
    assert core.step() == []


def test_in_step_a_token_comes_with_the_step_that_computes_it() -> None:
    core = added(core_of(ContentRunner(), depth=0), request("a", [1, 2], new=2))
    assert [len(outputs(core.step()).get("a", [])) for _ in range(2)] == [1, 1]
    assert core.idle


def test_one_step_ahead_the_next_step_is_begun_before_the_last_ones_tokens_are_handled() -> None:
    runner = ContentRunner()
    core = added(core_of(runner, depth=1), request("a", [1, 2], new=3))
    seen = [(len(outputs(core.step()).get("a", [])), len(runner.plans)) for _ in range(4)]
    assert seen == [(0, 1), (1, 2), (1, 3), (1, 3)]
    assert core.idle


@DEPTHS
def test_turn_two_of_a_chat_computes_only_what_is_new(depth: int) -> None:
    runner = ContentRunner(num_blocks=64)
    core = added(core_of(runner, depth, step_tokens=512), request("turn 1", range(21), new=16))
    answer = outputs(drain(core))["turn 1"]
    runner.plans.clear()
    second = request("turn 2", [*range(21), *answer, 7, 8, 9], new=5)
    events = drain(added(core, second))
    (first,) = runner.plans[0].chunks
    assert (first.start, first.end) == (36, 40)  # 21 + 16 - 1 positions were written: nine full blocks
    assert next(e.cached_tokens for e in events if isinstance(e, Token)) == 36
    assert outputs(events)["turn 2"] == expected_output(second)


@DEPTHS
@pytest.mark.parametrize("steps", range(8))
def test_slot_and_blocks_of_a_cancelled_request_serve_the_next_one_at_once(depth: int, steps: int) -> None:
    """The only slot and all blocks go over while steps of the former owner are still in flight."""
    core = core_of(ContentRunner(num_blocks=6, max_running=1), depth)
    added(core, request("gone", range(10), new=10), request("next", range(50, 60), new=10))
    events = [event for _ in range(steps) for event in core.step()]
    events += core.cancel("gone")
    after = drain(core)
    assert "gone" not in outputs(after), "a token after the Finish"
    assert outputs(after)["next"] == expected_output(request("next", range(50, 60), new=10))
    assert finishes(events + after) == {"gone": FinishReason.CANCELLED, "next": FinishReason.LENGTH}


@DEPTHS
def test_slot_and_blocks_of_a_stopped_request_serve_the_next_one_at_once(depth: int) -> None:
    first = request("stops", range(10), new=10)
    first = request("stops", range(10), new=10, stop=[expected_output(first)[3]])
    second = request("next", range(50, 60), new=10)
    events = drain(added(core_of(ContentRunner(num_blocks=6, max_running=1), depth), first, second))
    assert outputs(events) == {each.id: expected_output(each) for each in (first, second)}
    assert finishes(events) == {"stops": FinishReason.STOP, "next": FinishReason.LENGTH}


@DEPTHS
def test_a_request_that_is_cancelled_and_comes_again_under_its_id_is_a_new_one(depth: int) -> None:
    core = added(core_of(ContentRunner(), depth), request("a", range(5), new=9))
    core.step()
    core.step()
    core.cancel("a")
    again = request("a", range(20, 25), new=4)
    assert outputs(drain(added(core, again)))["a"] == expected_output(again)


@DEPTHS
def test_the_deadline_ends_waiting_and_running_requests(depth: int) -> None:
    now = [0.0]
    core = core_of(ContentRunner(max_running=1), depth, clock=lambda: now[0])
    added(core, request("running", [1], new=20, deadline=5), request("waiting", [2], deadline=5), request("late", [3]))
    core.step()
    now[0] = 5.0
    events = drain(core)
    assert finishes(events) == {
        "running": FinishReason.DEADLINE,
        "waiting": FinishReason.DEADLINE,
        "late": FinishReason.LENGTH,
    }
    assert "running" not in outputs(events)


def test_a_rejected_request_has_its_finish_at_once() -> None:
    core = added(core_of(ContentRunner(max_running=1), queue=1), request("a", [1]), request("b", [2]))
    (event,) = core.add(request("c", [3]))
    assert isinstance(event, Finish)
    assert (event.reason, event.retry_after > 0) == (FinishReason.REJECTED, True)
    (never,) = core.add(request("d", range(90), new=111))
    assert isinstance(never, Finish)
    assert (never.reason, never.retry_after) == (FinishReason.REJECTED, 0)


# --- failures ---


def broken_begin(runner: ContentRunner) -> None:
    runner.fail_begin = RuntimeError("illegal memory access")


def broken_wait(runner: ContentRunner) -> None:
    runner.fail_tokens = RuntimeError("illegal memory access")


def broken_admit(runner: ContentRunner) -> None:
    runner.fail_admit = RuntimeError("illegal memory access")


@DEPTHS
@pytest.mark.parametrize("break_it", [broken_begin, broken_wait, broken_admit])
def test_a_broken_step_ends_every_open_request_once_and_the_core_can_go_on(
    depth: int, break_it: Callable[[ContentRunner], None]
) -> None:
    runner = ContentRunner(max_running=2)
    core = added(core_of(runner, depth), request("a", range(9)), request("b", range(9)), request("c", range(9)))
    break_it(runner)
    with pytest.raises(StepFailed, match=r"RuntimeError: illegal memory access") as failure:
        drain(core)
    assert isinstance(failure.value.__cause__, RuntimeError)
    assert finishes(failure.value.events) == dict.fromkeys("abc", FinishReason.ERROR)
    assert core.idle
    assert core.stats().kv_blocks_cached == 0, "what the blocks hold is not known any more"
    assert outputs(drain(added(core, request("d", range(9)))))["d"] == expected_output(request("d", range(9)))


@pytest.mark.parametrize("break_it", [broken_begin, broken_wait])
def test_steps_in_flight_live_as_long_as_the_error(
    break_it: Callable[[ContentRunner], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step holds must not be freed on a broken device: that would abort the process before it says why."""
    runner, begun = ContentRunner(), list[weakref.ref[Pending]]()
    begin = runner.begin

    def noted(plan: StepPlan) -> Pending:
        pending = begin(plan)
        begun.append(weakref.ref(pending))
        return pending

    monkeypatch.setattr(runner, "begin", noted)
    core = added(core_of(runner, depth=2), request("a", range(3)))
    core.step()
    core.step()
    break_it(runner)
    with pytest.raises(StepFailed) as failure:
        drain(core)
    assert failure.value.unfinished
    assert all(each() is not None for each in begun[-2:])
    assert core.idle


def test_events_of_the_step_that_broke_are_not_lost() -> None:
    now = [0.0]
    runner = ContentRunner()
    core = core_of(runner, clock=lambda: now[0])
    added(core, request("expired", [1], deadline=1), request("open", [2]))
    now[0] = 2.0
    runner.fail_begin = RuntimeError("lost")
    with pytest.raises(StepFailed) as failure:
        core.step()
    assert finishes(failure.value.events) == {"expired": FinishReason.DEADLINE, "open": FinishReason.ERROR}


def test_a_runner_that_returns_too_few_tokens_breaks_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    core = added(core_of(ContentRunner()), request("a", [1]), request("b", [2]))
    monkeypatch.setattr(ContentPending, "tokens", lambda _: [1])
    with pytest.raises(StepFailed, match="gave 1 tokens, 2 were due") as failure:
        core.step()
    assert finishes(failure.value.events) == {"a": FinishReason.ERROR, "b": FinishReason.ERROR}


@DEPTHS
@pytest.mark.parametrize("after", range(5))
def test_out_of_memory_ends_the_newest_request_alone(depth: int, after: int) -> None:
    runner = ContentRunner(num_blocks=64)
    requests = [request(name, range(i, i + 9), new=7) for i, name in enumerate("abc")]
    core = added(core_of(runner, depth, step_tokens=64), *requests)
    events = [event for _ in range(after) for event in core.step()]
    runner.fail_begin = OutOfMemory("tried to allocate 2 GiB")
    events += drain(core)
    assert finishes(events) == {"a": FinishReason.LENGTH, "b": FinishReason.LENGTH, "c": FinishReason.ERROR}
    for each in requests[:2]:
        assert outputs(events)[each.id] == expected_output(each)
    (message,) = [e.message for e in events if isinstance(e, Finish) and e.reason is FinishReason.ERROR]
    assert message == "the device ran out of memory: tried to allocate 2 GiB"


@dataclass
class SmallRunner(ContentRunner):
    """What a step needs of the device's memory grows with its prompts, and there is little."""

    most_prompts: int = 10

    def begin(self, plan: StepPlan) -> ContentPending:
        if len(plan.chunks) > self.most_prompts:
            raise OutOfMemory("tried to allocate 2 GiB")
        return super().begin(plan)


@DEPTHS
def test_who_waits_does_not_come_into_the_failed_requests_place_only_to_fail_next(depth: int) -> None:
    """Forty requests, of whose prompts a step could hold sixteen, had the device the memory."""
    runner = SmallRunner(num_blocks=400, max_running=40)
    requests = [request(f"r{i}", range(i, i + 4), new=3) for i in range(40)]
    events = drain(added(core_of(runner, depth, step_tokens=64), *requests))
    reasons = finishes(events)
    assert sum(reason is FinishReason.ERROR for reason in reasons.values()) <= 2
    for each in requests:
        if reasons[each.id] is FinishReason.LENGTH:
            assert outputs(events)[each.id] == expected_output(each)


def lack_memory(core: NativeCore, runner: ContentRunner) -> list[Event]:
    """The next step to be launched lacks memory, as is seen when its tokens are waited for."""
    runner.fail_tokens = OutOfMemory("graph launch")
    events = core.step()
    while not core._lost and FinishReason.ERROR not in finishes(events).values():
        events += core.step()
    return events


@DEPTHS
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("failures", [1, 2])
def test_a_launched_step_that_lacked_memory_is_computed_again_and_at_last_without_the_newest_request(
    depth: int, prefix_cache: bool, after: int, failures: int
) -> None:
    runner = ContentRunner(num_blocks=64)
    requests = [request(name, range(i // 2, i // 2 + 9), new=7) for i, name in enumerate("abc")]
    core = added(core_of(runner, depth, step_tokens=5, prefix_cache=prefix_cache), *requests)
    events = [event for _ in range(after) for event in core.step()]
    for _ in range(failures):
        events += lack_memory(core, runner)
    events += drain(core)
    assert sum(reason is FinishReason.ERROR for reason in finishes(events).values()) == failures - 1
    for each in requests:
        if finishes(events)[each.id] is FinishReason.LENGTH:
            assert outputs(events)[each.id] == expected_output(each)
    core._scheduler.check_integrity()
    again = request("again", range(9), new=7)
    assert outputs(drain(added(core, again)))["again"] == expected_output(again)


@DEPTHS
def test_memory_lacking_at_the_same_place_each_time_does_not_restart_a_prompt_for_ever(depth: int) -> None:
    """What comes before that place fits, time and again."""
    runner = ContentRunner(num_blocks=64)
    begin = runner.begin

    def begin_in_vain(plan: StepPlan) -> Pending:
        if any(chunk.end > 30 for chunk in plan.chunks):
            runner.fail_tokens = OutOfMemory("graph launch")
        return begin(plan)

    runner.begin = begin_in_vain  # type: ignore[method-assign, assignment]
    requests = [request("neighbour", range(9), new=40), request("long", range(40), new=3)]
    events = drain(added(core_of(runner, depth, step_tokens=8, prefix_cache=False), *requests))
    assert finishes(events) == {"neighbour": FinishReason.LENGTH, "long": FinishReason.ERROR}
    assert outputs(events)["neighbour"] == expected_output(requests[0])


@DEPTHS
@pytest.mark.parametrize("after", range(5))
def test_a_slot_that_cannot_be_filled_for_want_of_memory_ends_the_newest_request_alone(depth: int, after: int) -> None:
    runner = ContentRunner(num_blocks=64, max_running=2)
    requests = [request(name, range(i, i + 9), new=3 + i) for i, name in enumerate("abc")]
    core = added(core_of(runner, depth, step_tokens=5), *requests)
    events = [event for _ in range(after) for event in core.step()]
    runner.fail_admit = OutOfMemory("tried to allocate 2 MiB")
    events += drain(core)
    failed = [name for name, reason in finishes(events).items() if reason is FinishReason.ERROR]
    assert len(failed) == 1
    for each in requests:
        if each.id not in failed:
            assert outputs(events)[each.id] == expected_output(each)


@DEPTHS
def test_slots_are_filled_again_for_all_of_a_lost_step_though_one_finds_no_room(depth: int) -> None:
    runner = ContentRunner(num_blocks=64)
    requests = [request(name, range(i, i + 9), new=7) for i, name in enumerate("abc")]
    core = added(core_of(runner, depth, step_tokens=64), *requests)
    events = core.step() + core.step() + lack_memory(core, runner)
    runner.fail_admit = OutOfMemory("tried to allocate 2 MiB")
    events += drain(core)
    assert finishes(events) == {"a": FinishReason.LENGTH, "b": FinishReason.LENGTH, "c": FinishReason.ERROR}
    for each in requests[:2]:
        assert outputs(events)[each.id] == expected_output(each)


def test_a_step_time_is_counted_from_the_end_of_the_step_before() -> None:
    """One step ahead, begun at once: else a step would count the time in which it waited for the other."""
    now, seen = [0.0], []

    class Recorded(PrefillPace):
        def measured(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
            seen.append((decodes, prompt_tokens, seconds))

    runner = ContentRunner()
    begin = runner.begin

    def timed_begin(plan: StepPlan) -> Pending:
        return Timed(begin(plan))

    class Timed:
        def __init__(self, pending: ContentPending) -> None:
            self._pending = pending
            self.sample = pending.sample

            self.logprobs = pending.logprobs

        def tokens(self) -> list[int]:
            now[0] += 3.0
            return self._pending.tokens()

    runner.begin = timed_begin  # type: ignore[method-assign, assignment]
    config = EngineConfig(kind="native", model_dir="", step_tokens=512)
    core = NativeCore(runner, info(), config, depth=1, clock=lambda: now[0], pace=Recorded(512))
    drain(added(core, request("a", range(9), new=4)))
    assert seen == [(0, 9, 3.0), (1, 0, 3.0), (1, 0, 3.0), (1, 0, 3.0)]


def test_out_of_memory_in_every_step_ends_all_requests_and_nothing_hangs() -> None:
    runner = ContentRunner(max_running=2)
    core = added(core_of(runner, depth=1), *(request(name, range(9)) for name in "abcd"))
    events = []
    while not core.idle:
        runner.fail_begin = OutOfMemory("full")
        events += core.step()
    assert finishes(events) == dict.fromkeys("abcd", FinishReason.ERROR)


def test_a_leak_breaks_the_step_that_ends_the_last_request_and_keeps_its_events() -> None:
    core = added(core_of(ContentRunner()), request("a", [1], new=1))
    core._scheduler._free_slots.pop()
    with pytest.raises(StepFailed, match="a slot is taken") as failure:
        core.step()
    assert finishes(failure.value.events) == {"a": FinishReason.LENGTH}


def test_stats_tell_of_the_gpus_too() -> None:
    gpu = GpuMemory(index=0, name="gpu", total=9, used=5, allocated=4, reserved=5)
    config = EngineConfig(kind="native", model_dir="")
    core = NativeCore(ContentRunner(num_blocks=9), info(), config, gpu_memory=lambda: [gpu])
    assert (core.stats().gpus, core.stats().kv_blocks_total) == ([gpu], 8)


def test_a_cuda_errors_advice_for_debuggers_is_left_out_of_what_clients_read() -> None:
    runner = ContentRunner()
    core = added(core_of(runner, depth=1), request("a", range(3)))
    runner.fail_tokens = RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with DSA\n")
    with pytest.raises(StepFailed) as failure:
        drain(core)
    (end,) = [event for event in failure.value.events if isinstance(event, Finish)]
    reason = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert end.message == f"the engine broke in a step: {reason}"
