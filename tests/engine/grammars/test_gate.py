"""Requests whose grammars are being compiled: each has one end, whatever happens meanwhile."""

import time
from concurrent.futures import Future

import pytest

from service.engine.base import (
    EngineInfo,
    EngineStats,
    Event,
    Finish,
    FinishReason,
    GenerationRequest,
    Matcher,
    StepFailed,
    Token,
)
from service.engine.grammars import gate
from service.engine.grammars.gate import GrammarGate
from tests.support.engines import a_request


class Perfect:
    """A matcher of anything."""

    problem = ""
    is_ours = False

    def advance(self, token: int) -> None:
        pass


class Hopeless(Perfect):
    problem = "the answer's grammar cannot be kept to: it is no grammar"


class Inner:
    """A core that answers each request with one token, or breaks."""

    def __init__(self) -> None:
        self.open: dict[str, Matcher | None] = {}
        self.breaks = False
        self.steps = 0

    info = EngineInfo(kind="x", device="cpu", dtype="none", max_context=9, max_running=2, vocab_size=9)

    @property
    def idle(self) -> bool:
        return not self.open

    def add(self, request: GenerationRequest, matcher: Matcher | None = None) -> list[Event]:
        self.open[request.id] = matcher
        return []

    def cancel(self, request_id: str) -> list[Event]:
        return [Finish(request_id, FinishReason.CANCELLED)] if self.open.pop(request_id, self) is not self else []

    def step(self) -> list[Event]:
        self.steps += 1
        ids, self.open = list(self.open), {}
        if self.breaks:
            raise StepFailed("it broke", [Finish(each, FinishReason.ERROR) for each in ids])
        return [event for each in ids for event in (Token(each, 7), Finish(each, FinishReason.STOP))]

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.open), waiting=1)


class Bench:
    """A gate with its core, a clock, and grammars that are compiled when a test says so."""

    def __init__(self, max_queue: int = 8) -> None:
        self.core = Inner()
        self.now = 0.0
        self.compiling: dict[str, Future[Matcher]] = {}
        self.gate = GrammarGate(self.core, self._compile, max_queue, clock=lambda: self.now)

    def _compile(self, grammar: str) -> Future[Matcher]:
        return self.compiling.setdefault(grammar, Future())

    def add(self, name: str, seconds: float = 1e9) -> list[Event]:
        return self.gate.add(request(name, name, seconds))


def request(name: str, grammar: str, deadline: float = 1e9) -> GenerationRequest:
    return GenerationRequest(
        id=name, prompt_ids=[1], max_new_tokens=1, stop_ids=[7], deadline=deadline, grammar=grammar
    )


def ends(events: list[Event]) -> dict[str, FinishReason]:
    return {event.id: event.reason for event in events if isinstance(event, Finish)}


def test_a_request_without_a_grammar_goes_straight_on() -> None:
    bench = Bench()
    assert bench.add("") == []
    assert bench.core.open == {"": None}
    assert bench.compiling == {}


def test_a_request_is_held_until_its_grammar_is_compiled_and_others_pass_it() -> None:
    bench = Bench()
    assert bench.add("a") == bench.gate.add(request("plain", "")) == []
    assert ends(bench.gate.step()) == {"plain": FinishReason.STOP}
    assert not bench.gate.idle
    assert bench.core.idle
    bench.compiling["a"].set_result(matcher := Perfect())
    handed_on: list[object] = []
    bench.core.add = lambda request, matcher=None: handed_on.append(matcher) or []  # type: ignore[method-assign]
    bench.gate.step()
    assert handed_on == [matcher]
    assert bench.gate.idle


def test_what_waits_for_a_grammar_counts_as_waiting() -> None:
    bench = Bench()
    bench.add("a")
    bench.add("b")
    assert bench.gate.stats().waiting == 3
    bench.compiling["a"].set_result(Perfect())
    bench.gate.step()
    assert bench.gate.stats().waiting == 2


def test_waiting_for_nothing_but_a_grammar_is_no_busy_loop_and_ends_with_it() -> None:
    bench = Bench()
    bench.add("a")
    begun = time.perf_counter()
    steps = 0
    while time.perf_counter() - begun < 0.2:
        bench.gate.step()
        steps += 1
    assert steps <= 21
    assert bench.core.steps == 0
    bench.compiling["a"].set_result(Perfect())
    assert ends(bench.gate.step()) == {"a": FinishReason.STOP}


def test_a_step_does_not_wait_for_grammars_while_the_core_has_work(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    monkeypatch.setattr(gate, "wait", lambda *arguments: waits.append(arguments))
    bench = Bench()
    bench.add("a")
    bench.gate.add(request("plain", ""))
    bench.gate.step()
    assert waits == []
    bench.gate.step()
    assert len(waits) == 1, "it does when there is nothing else"


def test_a_grammar_that_cannot_be_kept_to_rejects_its_request_alone() -> None:
    bench = Bench()
    bench.add("good")
    bench.add("bad")
    bench.compiling["bad"].set_result(Hopeless())
    bench.compiling["good"].set_result(Perfect())
    events = bench.gate.step()
    assert ends(events) == {"bad": FinishReason.REJECTED, "good": FinishReason.STOP}
    (rejected,) = [event for event in events if isinstance(event, Finish) and event.id == "bad"]
    assert rejected.message == Hopeless.problem
    assert rejected.retry_after == 0


def test_a_compiler_that_breaks_ends_the_request_with_its_words() -> None:
    bench = Bench()
    bench.add("a")
    bench.compiling["a"].set_exception(OSError("tokenizer.json is gone\nand more"))
    (finish,) = bench.gate.step()
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.ERROR
    assert finish.message == "its grammar cannot be compiled: OSError: tokenizer.json is gone"
    assert bench.gate.idle


def test_a_held_request_can_be_cancelled_and_its_grammar_is_not_compiled_any_more() -> None:
    bench = Bench()
    bench.add("a")
    assert bench.gate.cancel("a") == [Finish("a", FinishReason.CANCELLED)]
    assert bench.compiling["a"].cancelled()
    assert bench.gate.cancel("a") == []
    assert bench.gate.idle


def test_a_cancel_of_what_runs_reaches_the_core() -> None:
    bench = Bench()
    bench.gate.add(request("plain", ""))
    assert ends(bench.gate.cancel("plain")) == {"plain": FinishReason.CANCELLED}


def test_a_deadline_ends_a_held_request_as_one_that_was_queued() -> None:
    bench = Bench()
    bench.add("a", seconds=5)
    bench.now = 5.0
    (finish,) = bench.gate.step()
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.queued) == (FinishReason.DEADLINE, True)
    assert bench.gate.idle


def test_a_core_that_breaks_ends_what_is_held_as_well() -> None:
    bench = Bench()
    bench.add("held")
    bench.gate.add(request("plain", ""))
    bench.core.breaks = True
    with pytest.raises(StepFailed) as failure:
        bench.gate.step()
    assert ends(failure.value.events) == {"plain": FinishReason.ERROR, "held": FinishReason.ERROR}
    assert len(failure.value.events) == 2
    assert bench.gate.idle


def test_a_deadline_that_passes_in_a_step_that_breaks_is_not_lost() -> None:
    bench = Bench()
    bench.add("late", seconds=1)
    bench.gate.add(request("plain", ""))
    bench.core.breaks, bench.now = True, 2.0
    with pytest.raises(StepFailed) as failure:
        bench.gate.step()
    assert ends(failure.value.events) == {"plain": FinishReason.ERROR, "late": FinishReason.DEADLINE}


def test_one_name_is_open_once() -> None:
    bench = Bench()
    bench.add("a")
    for again in (request("a", "a"), request("a", "")):
        (finish,) = bench.gate.add(again)
        assert isinstance(finish, Finish)
        assert finish.reason is FinishReason.REJECTED
        assert "'a'" in finish.message


@pytest.mark.parametrize("max_queue", [0, 3])
def test_as_many_are_held_as_may_run_and_wait_and_the_next_is_told_to_come_back(max_queue: int) -> None:
    bench = Bench(max_queue)
    most = max_queue + Inner.info.max_running
    assert [bench.add(f"{n}") for n in range(most)] == [[]] * most
    (finish,) = bench.add("one more")
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.REJECTED
    assert finish.retry_after > 0
    assert str(most) in finish.message
    assert a_request(id_="plain").grammar == ""
    assert bench.gate.add(request("plain", "")) == []  # others are the core's to judge
