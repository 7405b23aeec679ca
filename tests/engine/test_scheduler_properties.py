"""Whatever comes, in whatever order: every request ends once, gives what it gives alone, and leaves nothing behind.

Hypothesis drives a real core over a runner that reads its context back out of the blocks. Arrivals share prefixes;
pools are tiny, so that blocks are evicted and reused all the time; clients cancel, deadlines pass, queues overflow,
the device runs out of memory and breaks.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.engine.base import (
    EngineConfig,
    EngineInfo,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    SamplingParams,
    StepFailed,
    Token,
)
from service.engine.core import NativeCore
from service.engine.steps import pace
from service.engine.steps.pace import LONG_PROMPT, PrefillPace
from service.engine.steps.plan import OutOfMemory
from tests.support.rules import Rule, allowed, may_follow
from tests.support.runner import VOCAB, ContentRunner, expected_output, report_of

COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)
MAX_CONTEXT = 40


def prompt_of(trunk: int, length: int, tail: list[int]) -> list[int]:
    return [trunk] * length + tail or [trunk]


# Few distinct beginnings of several blocks, some of them prefixes of others, and a short tail of their own.
prompts = st.builds(prompt_of, st.sampled_from([1, 2]), st.integers(0, 18), st.lists(st.integers(0, 3), max_size=4))


class Serving(RuleBasedStateMachine):
    """A core, the requests it was given, and the events it gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.requests: dict[str, GenerationRequest] = {}
        self.kept: set[str] = set()  # those with a grammar
        self.lacked_later = False  # a step in flight may still say so
        self.outputs: dict[str, list[int]] = {}
        self.ends: dict[str, Finish] = {}
        self.first_tokens: list[str] = []

    @initialize(
        blocks=st.integers(6, 40),
        block_size=st.integers(1, 4),
        running=st.sampled_from([1, 2, 4, 4]),
        queue=st.integers(0, 6),
        step_tokens=st.sampled_from([1, 2, 3, 5, 8, 24]),
        prefix_cache=st.booleans(),
        depth=st.integers(0, 2),
        long=st.sampled_from([3, 8, 1000]),
        paced=st.booleans(),
    )
    def start(
        self,
        blocks: int,
        block_size: int,
        running: int,
        queue: int,
        step_tokens: int,
        prefix_cache: bool,
        depth: int,
        long: int,
        paced: bool,
    ) -> None:
        pace.LONG_PROMPT = long
        self.runner = ContentRunner(blocks, block_size, running)
        info = EngineInfo(
            kind="native", device="", dtype="", max_context=MAX_CONTEXT, max_running=running, vocab_size=VOCAB
        )
        config = EngineConfig(
            kind="native", model_dir="", max_queue=queue, step_tokens=step_tokens, prefix_cache=prefix_cache
        )
        kept = PrefillPace(step_tokens) if paced else None
        clock = lambda: self.now  # noqa: E731
        self.core = NativeCore(self.runner, info, config, depth=depth, clock=clock, pace=kept, allowed=allowed)
        self.max_queue = queue
        self.total = self.core.stats().kv_blocks_total

    @rule(
        prompt=prompts,
        new=st.integers(1, 12),
        patience=st.sampled_from([0, 1, 3, 1000]),
        stops=st.booleans(),
        has_grammar=st.booleans(),
        logprobs=st.sampled_from([None, 0, 3]),
    )
    def arrive(
        self,
        prompt: list[int],
        new: int,
        patience: int,
        stops: bool,
        has_grammar: bool = False,
        logprobs: int | None = None,
    ) -> None:
        request = GenerationRequest(
            id=f"r{len(self.requests)}",
            prompt_ids=prompt,
            max_new_tokens=new,
            stop_ids=list(range(0, VOCAB, 5)) if stops else [],
            deadline=self.now + patience,
            sampling=SamplingParams(seed=new % 2),
            logprobs=logprobs,
        )
        self.requests[request.id] = request
        if has_grammar:
            self.kept.add(request.id)
        self.take(self.core.add(request, Rule() if has_grammar else None))
        positions = len(prompt) + new - 1
        fits = positions < MAX_CONTEXT and positions <= self.total * self.runner.block_size
        rejected = self.ends.get(request.id)
        assert rejected is None or bool(rejected.retry_after) == fits, "only a full queue asks to come back"
        assert fits or rejected

    @rule(prompts=st.lists(prompts, min_size=2, max_size=4), new=st.integers(1, 12))
    def arrive_together(self, prompts: list[list[int]], new: int) -> None:
        for prompt in prompts:
            self.arrive(prompt, new, 1000, False)

    @rule(answered=st.integers(0, 50), tail=st.lists(st.integers(0, 3), min_size=1, max_size=3))
    def next_turn(self, answered: int, tail: list[int]) -> None:
        """The next message of a chat: prompt and answer of an earlier request are the beginning of this one."""
        if not self.outputs:
            return
        name = list(self.outputs)[answered % len(self.outputs)]
        self.arrive([*self.requests[name].prompt_ids, *self.outputs[name], *tail], 3, 1000, False)

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        if not self.open:
            return
        name = self.open[index % len(self.open)]
        events = self.core.cancel(name)
        assert events == [Finish(name, FinishReason.CANCELLED)]
        self.take(events)

    @rule(index=st.integers(0, 50))
    def cancel_what_has_ended(self, index: int) -> None:
        if not self.ends:
            return
        assert self.core.cancel(list(self.ends)[index % len(self.ends)]) == []

    @rule(times=st.integers(1, 8))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.advance()

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def run_out_of_memory(self) -> None:
        before = self.open
        self.runner.fail_begin = OutOfMemory("full")
        broke = self.advance()
        launched = self.runner.fail_begin is None
        self.runner.fail_begin = None
        failed = sum(self.ended_with(name, FinishReason.ERROR) for name in before)
        assert broke or self.lacked_later or failed == launched

    @rule(where=st.sampled_from(["fail_begin", "fail_sample", "fail_restrict", "fail_tokens", "fail_admit"]))
    def crash(self, where: str) -> None:
        self.fail(where, RuntimeError("injected"))

    @rule(where=st.sampled_from(["fail_sample", "fail_restrict", "fail_tokens"]))
    def run_out_of_memory_later(self, where: str) -> None:
        self.lacked_later = True
        self.fail(where, OutOfMemory("full"))

    def fail(self, where: str, error: Exception) -> None:
        setattr(self.runner, where, error)
        self.advance()
        setattr(self.runner, where, None)

    @rule()
    def settle(self) -> None:
        """Serve all that is open, and look at what is left behind."""
        for _ in range(2000):
            if self.core.idle:
                break
            self.advance()
        assert self.core.idle, "requests are open, but no step ends them"
        assert not self.open
        stats = self.core.stats()
        assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
        assert stats.kv_blocks_total == self.total
        self.core._scheduler.check_idle()

    @invariant()
    def books_are_in_order(self) -> None:
        if hasattr(self, "core"):
            self.core._scheduler.check_integrity()
            stats = self.core.stats()
            assert stats.running + stats.waiting == len(self.open)
            assert stats.waiting <= self.max_queue
            assert stats.generation_tokens == sum(map(len, self.outputs.values()))

    @invariant()
    def first_tokens_come_in_order_of_arrival(self) -> None:
        """Of short prompts, and of long ones, which the short ones may pass."""
        arrivals = list(self.requests)
        for kind in (True, False):
            names = [name for name in self.first_tokens if pace.is_long(len(self.requests[name].prompt_ids)) is kind]
            order = [arrivals.index(name) for name in names]
            assert order == sorted(order)

    def teardown(self) -> None:
        pace.LONG_PROMPT = LONG_PROMPT
        if hasattr(self, "core"):
            self.settle()
            self.books_are_in_order()
            assert self.ends.keys() == self.requests.keys()

    @property
    def open(self) -> list[str]:
        return [name for name in self.requests if name not in self.ends]

    def advance(self) -> bool:
        """One step; True when it broke, which only an injected error may do, perhaps one of an earlier launch."""
        try:
            self.take(self.core.step())
            assert all(self.requests[name].deadline > self.now for name in self.open)
        except StepFailed as failure:
            self.take(failure.events)
            cause = str(failure.__cause__)
            assert cause == "injected", "a step broke by itself"
            assert not self.open
            assert self.core.idle
            assert self.core.stats().kv_blocks_cached == 0
            return True
        return False

    def ended_with(self, name: str, reason: FinishReason) -> bool:
        return name in self.ends and self.ends[name].reason is reason

    def take(self, events: list[Event]) -> None:
        for event in events:
            assert event.id not in self.ends, "an event after the Finish"
            if isinstance(event, Token):
                self.take_token(event)
            else:
                self.take_finish(event)

    def take_token(self, event: Token) -> None:
        assert event.logprobs == report_of(self.requests[event.id], event.token)
        output = self.outputs.setdefault(event.id, [])
        if not output:
            self.first_tokens.append(event.id)
            assert event.cached_tokens % self.runner.block_size == 0
            assert 0 <= event.cached_tokens < len(self.requests[event.id].prompt_ids)
        output.append(event.token)

    def take_finish(self, event: Finish) -> None:
        request, output = self.requests[event.id], self.outputs.get(event.id, [])
        self.ends[event.id] = event
        expected = expected_output(request, may_follow if event.id in self.kept else None)
        assert output == expected[: len(output)], "not what the request gives alone"
        assert (len(output) == len(expected)) == (event.reason in COMPLETE)
        assert event.reason is not FinishReason.DEADLINE or self.now >= request.deadline
        if event.reason is FinishReason.STOP:
            assert output[-1] in request.stop_ids
        if event.reason is FinishReason.LENGTH:
            assert len(output) == request.max_new_tokens


TestServing = Serving.TestCase
TestServing.settings = settings(
    max_examples=700,
    stateful_step_count=40,
    deadline=None,
    database=None,
)
