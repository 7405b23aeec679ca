"""What a long prompt does to running streams, on a simulated GPU whose step times follow an H100's arithmetic."""

import random
from dataclasses import dataclass, field

import pytest

from service.engine.admission import Limits
from service.engine.base import GenerationRequest
from service.engine.kv_cache import BlockPool
from service.engine.scheduler import Scheduler
from service.engine.steps.pace import (
    CROWD,
    CROWD_SHARE,
    CROWD_TOKENS,
    LEAST_TOKENS,
    LONG_PROMPT,
    TOKENS_AT_FIRST,
    DecodeTimes,
    PrefillPace,
    PromptBudget,
)
from service.engine.steps.plan import StepPlan

STEP_TOKENS = 2048
SECONDS_PER_TOKEN = 27e-6
"""15.5 GFLOP at 575 TFLOP/s."""
SECONDS_PER_TOKEN_AND_CONTEXT = 4 * 4096 * 48 / 400e12
"""Attention's FLOP, at what flash attention reaches."""


@dataclass
class Gpu:
    """Seconds of a step: reading the weights, or computing the rows, whichever is longer, and attention on top."""

    weights: float = 5.5e-3
    per_row: float = 30e-6
    speed: float = 1.0
    jitter: float = 0.02
    dice: random.Random = field(default_factory=lambda: random.Random(0))

    def timed(self) -> DecodeTimes:
        """Before serving, with almost no context."""
        of_one, of_most = (self.speed * (self.weights + self.per_row / 2 * count) for count in (1, 256))
        return DecodeTimes(of_one, of_most, 256)

    def seconds(self, plan: StepPlan) -> float:
        rows = len(plan.decodes) + sum(c.end - c.start for c in plan.chunks)
        scores = sum((c.end - c.start) * (c.start + c.end) / 2 for c in plan.chunks)
        compute = max(self.weights + self.per_row * len(plan.decodes), rows * SECONDS_PER_TOKEN)
        noise = 1 + self.jitter * self.dice.random()
        return (compute + scores * SECONDS_PER_TOKEN_AND_CONTEXT) * self.speed * noise


@dataclass
class Simulation:
    """A scheduler on a simulated GPU; `depth` steps are planned before a step's time is known."""

    gpu: Gpu
    pace: PrefillPace | None
    depth: int = 1
    step_tokens: int = STEP_TOKENS
    plans: list[StepPlan] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = Limits(
            max_context=40_000,
            max_running=256,
            max_queue=256,
            step_tokens=self.step_tokens,
            cache_tokens=1_000_000,
            vocab_size=50_000,
        )
        self.scheduler = Scheduler(limits, BlockPool(16_000, 64, prefix_cache=False), self.pace)
        self._in_flight: list[tuple[StepPlan, float]] = []

    def add(self, name: str, prompt: int, new: int) -> None:
        request = GenerationRequest(
            id=name, prompt_ids=list(range(prompt)), max_new_tokens=new, stop_ids=[], deadline=1e9
        )
        assert self.scheduler.add(request, 0.0) == []

    def step(self) -> StepPlan:
        plan = self.scheduler.plan(0.0)
        seconds = self.gpu.seconds(plan)
        self.scheduler.launched(plan)
        self.plans.append(plan)
        self.times.append(seconds)
        self._in_flight.append((plan, seconds))
        while len(self._in_flight) > self.depth:
            done, took = self._in_flight.pop(0)
            self.scheduler.measured(done, took)
            self.scheduler.commit(done, [1] * len(done.sampled), {}, 0.0)
        return plan

    def run_until_decoding(self, streams: int) -> None:
        for index in range(streams):
            self.add(f"stream {index}", 200, 3000)
        while len(self.step().decodes) < streams:
            pass

    def prefill_of(self, name: str, prompt: int) -> list[float]:
        """Times of the steps from the prompt's first chunk to its first token."""
        self.add(name, prompt, 2)
        return self.steps_until_tokens_of(name)

    def steps_until_tokens_of(self, *names: str) -> list[float]:
        """Times of the steps until all of them have their first tokens."""
        first, without = len(self.times), set(names)
        while without:
            without -= {sequence.request.id for sequence in self.step().sampled}
        return self.times[first:]


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


@pytest.mark.parametrize("speed", [0.5, 1.0, 8.0], ids=["a faster GPU", "an H100", "a slow GPU"])
@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("streams", [1, 8, 64, 200])
@pytest.mark.parametrize("is_timed", [False, True], ids=["learning", "timed before"])
def test_a_prompt_of_30k_tokens_keeps_the_p99_time_between_tokens_below_twice(
    streams: int, depth: int, speed: float, is_timed: bool
) -> None:
    gpu = Gpu(speed=speed)
    it = Simulation(gpu, PrefillPace(STEP_TOKENS, gpu.timed() if is_timed else None), depth)
    it.run_until_decoding(streams)
    before = [it.gpu.seconds(it.step()) for _ in range(50)]
    during = it.prefill_of("long", 30_000)
    assert p99(during) <= 2 * p99(before)
    # And the prompt gets what there is: not a crawl at the floor.
    assert sum(during) / len(during) >= 1.5 * sum(before) / len(before)


@pytest.mark.parametrize("speed", [0.5, 1.0, 8.0], ids=["a faster GPU", "an H100", "a slow GPU"])
@pytest.mark.parametrize("streams", [1, 16, 64])
@pytest.mark.parametrize("behind", [1, 3, 4, 8])
def test_whoever_waits_behind_it_does_not_have_the_long_prompt_hurry(behind: int, streams: int, speed: float) -> None:
    """A crowd may have longer steps, since to wait costs it more, but it is the long prompt that is first in line."""
    gpu = Gpu(speed=speed)
    it = Simulation(gpu, PrefillPace(STEP_TOKENS, gpu.timed()))
    it.run_until_decoding(streams)
    before = [it.gpu.seconds(it.step()) for _ in range(50)]
    it.add("long", 30_000, 2)
    for index in range(behind):
        it.add(f"short {index}", 100, 3000)
    waited = it.steps_until_tokens_of(f"short {behind - 1}")
    assert p99(waited + it.steps_until_tokens_of("long")) <= 2 * p99(before)
    assert len(waited) <= 20, "nor wait for all of it"


def test_short_prompts_of_a_crowd_pass_a_long_one_that_would_have_nothing_of_the_step() -> None:
    """Admitted later it finds in the prefix cache what the first one has left there by then."""
    it = Simulation(Gpu(), PrefillPace(STEP_TOKENS))
    it.run_until_decoding(8)
    share = it.pace.budget(decodes=8, awaiting=1).tokens if it.pace else 0
    for name, prompt in (("long", 30_000), ("another", 30_000), ("a", 100), ("b", LONG_PROMPT), ("c", 100)):
        it.add(name, prompt, 2)
    assert sizes_of(it.step()) == {"long": share // 2, "a": 100, "b": CROWD_TOKENS - 100 - share // 2}
    assert it.scheduler.stats().waiting == 2
    it.steps_until_tokens_of("b", "c")
    assert [c.sequence.request.id for c in it.step().chunks] == ["long"]
    it.steps_until_tokens_of("long", "another")


@pytest.mark.parametrize("prompt", [256, 512, 1024])
def test_a_long_prompt_is_not_passed_for_ever(prompt: int) -> None:
    """By a crowd that never ends, whose prompts divide its steps."""
    it = Simulation(Gpu(), PrefillPace(STEP_TOKENS))
    it.run_until_decoding(16)
    for index in range(4):
        it.add(f"ahead {index}", prompt, 1)
    it.add("misaligned", 500, 1)
    it.add("long", 30_000, 2)
    for index in range(50):
        while it.scheduler.stats().waiting < 8:
            it.add(f"short {index} {it.scheduler.stats().waiting} {len(it.plans)}", prompt, 1)
        if "long" in sizes_of(it.step()):
            return
    raise AssertionError("it never got a token")


def test_what_short_prompts_leave_of_their_half_is_the_long_ones() -> None:
    it = Simulation(Gpu(), PrefillPace(STEP_TOKENS))
    it.run_until_decoding(8)
    it.add("long", 30_000, 2)
    it.add("short", 10, 2)
    share = sum(sizes_of(it.step()).values())
    assert sizes_of(it.plans[-1]) == {"long": share - 10, "short": 10}
    assert share > 100


def sizes_of(plan: StepPlan) -> dict[str, int]:
    return {c.sequence.request.id: c.end - c.start for c in plan.chunks}


def test_a_single_short_prompt_does_not_wait_for_a_long_one_to_end() -> None:
    it = Simulation(Gpu(), None)
    it.add("long", 30_000, 2)
    assert sizes_of(it.step()) == {"long": STEP_TOKENS}
    it.add("short", 100, 2)
    assert sizes_of(it.step()) == {"long": STEP_TOKENS - 100, "short": 100}
    assert sizes_of(it.step())["long"] == STEP_TOKENS - 1


def test_a_short_prompt_that_finds_no_slot_does_not_slow_the_long_one() -> None:
    it = Simulation(Gpu(), None)
    it.run_until_decoding(255)
    it.add("long", 30_000, 2)
    it.step()
    it.add("short", 100, 2)
    assert sizes_of(it.step()) == {"long": STEP_TOKENS - 255}


@pytest.mark.parametrize(
    ("prompt", "wanted", "granted", "left"),
    [
        (LONG_PROMPT, 50, 50, (950, 100)),
        (LONG_PROMPT, 950, 950, (50, 50)),
        (LONG_PROMPT, 2000, 1000, (0, 0)),
        (LONG_PROMPT + 1, 50, 50, (950, 50)),
        (LONG_PROMPT + 1, 2000, 100, (900, 0)),
    ],
)
def test_a_long_prompt_has_its_paces_share_of_a_crowds_step(
    prompt: int, wanted: int, granted: int, left: tuple[int, int]
) -> None:
    budget = PromptBudget(tokens=1000, of_long=100)
    assert budget.grant(prompt, wanted) == granted
    assert (budget.tokens, budget.of_long) == left


def test_a_crowds_step_of_short_prompts_says_nothing_for_a_larger_share() -> None:
    pace = PrefillPace(STEP_TOKENS)
    pace.measured(decodes=2, prompt_tokens=0, seconds=0.010)
    for seconds, share in ((0.012, TOKENS_AT_FIRST), (0.018 + 0.072, TOKENS_AT_FIRST * 0.8)):
        pace.measured(decodes=2, prompt_tokens=CROWD_TOKENS, seconds=seconds)
        assert pace.budget(decodes=2, awaiting=1).tokens == pytest.approx(share, abs=1)


def test_a_share_that_a_slow_step_cut_grows_again_in_a_crowd() -> None:
    pace = PrefillPace(STEP_TOKENS)
    pace.measured(decodes=2, prompt_tokens=0, seconds=0.010)
    pace.measured(decodes=2, prompt_tokens=CROWD_TOKENS, seconds=0.5)
    assert pace.budget(decodes=2, awaiting=1).tokens < 20
    for _ in range(40):
        pace.measured(decodes=2, prompt_tokens=CROWD_TOKENS, seconds=0.030)
    assert pace.budget(decodes=2, awaiting=1).tokens == TOKENS_AT_FIRST


def test_without_a_pace_the_same_prompt_would_stall_the_streams() -> None:
    """Guards the test above: the simulated GPU does feel a full chunk."""
    it = Simulation(Gpu(), None)
    it.run_until_decoding(8)
    before = [it.gpu.seconds(it.step()) for _ in range(50)]
    assert p99(it.prefill_of("long", 30_000)) > 3 * p99(before)


def test_a_prompt_alone_is_computed_in_full_steps() -> None:
    it = Simulation(Gpu(), PrefillPace(STEP_TOKENS))
    it.add("alone", 20_000, 3)
    sizes = [sum(c.end - c.start for c in it.step().chunks) for _ in range(9)]
    assert sizes == [STEP_TOKENS] * 9


def test_every_prompt_token_is_computed_whatever_the_pace() -> None:
    it = Simulation(Gpu(), PrefillPace(STEP_TOKENS))
    it.run_until_decoding(4)
    it.prefill_of("long", 30_000)
    chunks = [c for plan in it.plans for c in plan.chunks if c.sequence.request.id == "long"]
    assert [c.start for c in chunks] == [0, *(c.end for c in chunks[:-1])]
    assert chunks[-1].end == 30_000
    assert min(c.end - c.start for c in chunks[:-1]) >= LEAST_TOKENS


@pytest.mark.parametrize(
    ("decodes", "awaiting", "expected"),
    [
        (0, 1, STEP_TOKENS),  # nobody to stall
        (3, CROWD, CROWD_TOKENS),
        (3, CROWD - 1, TOKENS_AT_FIRST),
        (CROWD * CROWD_SHARE, CROWD, CROWD_TOKENS),
        (8 * CROWD_SHARE, 7, TOKENS_AT_FIRST),  # a crowd by itself, but not beside so many
        (8 * CROWD_SHARE, 8, CROWD_TOKENS),
    ],
)
def test_a_crowd_that_waits_for_its_first_tokens_is_not_held_up_by_streams(
    decodes: int, awaiting: int, expected: int
) -> None:
    assert PrefillPace(STEP_TOKENS).budget(decodes, awaiting).tokens == expected


def test_a_crowds_share_is_no_more_than_a_steps_tokens_and_no_less_than_the_paces() -> None:
    assert PrefillPace(100).budget(decodes=2, awaiting=CROWD).tokens == 100
    learned = PrefillPace(4096)
    learned._tokens = CROWD_TOKENS + 1
    assert learned.budget(decodes=2, awaiting=CROWD).tokens == CROWD_TOKENS + 1


def test_a_burst_of_requests_is_served_at_almost_the_rate_without_a_pace() -> None:
    """64 at once: prompts of 128 to 512 tokens, 256 new ones each."""

    def seconds(pace: PrefillPace | None) -> float:
        it = Simulation(Gpu(), pace)
        for index in range(64):
            it.add(f"request {index}", 128 + 6 * index, 256)
        while not it.scheduler.idle:
            it.step()
        return sum(it.times)

    unpaced = seconds(None)
    assert seconds(PrefillPace(STEP_TOKENS, Gpu().timed())) <= 1.05 * unpaced


def test_nothing_is_learnt_from_steps_without_running_streams() -> None:
    pace = PrefillPace(STEP_TOKENS)
    pace.measured(decodes=0, prompt_tokens=512, seconds=9.0)
    pace.measured(decodes=1, prompt_tokens=128, seconds=9.0)
    assert pace.budget(decodes=1, awaiting=1).tokens == TOKENS_AT_FIRST


@pytest.mark.parametrize(
    ("prompt_tokens", "seconds", "expected"),
    [
        (128, 0.018, 128),  # exactly what is allowed
        (128, 0.026, 64),  # twice too much
        (128, 1.0, LEAST_TOKENS),
        (128, 0.010, 141),  # free: a tenth more
        (128, 0.002, 141),  # noise
        (40, 0.011, 128),  # too short to tell
        (40, 0.026, 20),  # but not too short to be too slow
    ],
)
def test_the_share_follows_the_last_mixed_step(prompt_tokens: int, seconds: float, expected: int) -> None:
    pace = PrefillPace(STEP_TOKENS)
    pace.measured(decodes=2, prompt_tokens=0, seconds=0.010)
    pace.measured(decodes=2, prompt_tokens=prompt_tokens, seconds=seconds)
    assert pace.budget(decodes=2, awaiting=1).tokens == pytest.approx(expected, abs=1)


def test_a_decode_that_was_timed_before_is_learnt_from_at_once() -> None:
    pace = PrefillPace(STEP_TOKENS, DecodeTimes(of_one=0.005, of_most=0.015, most=11))
    pace.measured(decodes=6, prompt_tokens=128, seconds=0.026)
    assert pace.budget(decodes=6, awaiting=1).tokens == pytest.approx(64, abs=1)


def test_decodes_alone_count_more_than_what_was_timed_before() -> None:
    pace = PrefillPace(STEP_TOKENS, DecodeTimes(of_one=1.0, of_most=1.0, most=1))
    pace.measured(decodes=2, prompt_tokens=0, seconds=0.010)
    pace.measured(decodes=2, prompt_tokens=128, seconds=0.026)
    assert pace.budget(decodes=2, awaiting=1).tokens == pytest.approx(64, abs=1)


def test_the_share_never_exceeds_a_steps_tokens() -> None:
    pace = PrefillPace(100)
    assert pace.budget(decodes=1, awaiting=1).tokens == 100
    pace.measured(decodes=1, prompt_tokens=0, seconds=0.010)
    pace.measured(decodes=1, prompt_tokens=100, seconds=0.010)
    assert pace.budget(decodes=1, awaiting=1).tokens == 100
