"""Tokens on their way to the host, with stand-ins for what only a GPU has."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.engine.logprobs import Report, Scores
from service.engine.steps.pending import PendingTokens
from service.engine.steps.plan import OutOfMemory


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Pinned memory and events; `waiting` and `pinning` are raised there, if set."""
    state = SimpleNamespace(waiting=None, pinning=None, said=[])
    empty = torch.empty

    def pinned(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory and state.pinning:
            raise state.pinning
        state.said.append("pinned" if pin_memory else "pageable")
        return empty(*shape, **options)

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking

        def record(self) -> None:
            state.said.append("recorded")

        def synchronize(self) -> None:
            if state.waiting:
                raise state.waiting

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: state.said.append("spare memory given back"))
    return state


def tokens_on_gpu() -> torch.Tensor:
    return torch.tensor([3, 5]).as_subclass(OnGpu)


def sampled(tokens: torch.Tensor) -> PendingTokens:
    pending = PendingTokens(lambda: tokens)
    pending.sample()
    return pending


def test_nothing_is_drawn_before_it_is_asked_for_and_then_once_unless_memory_lacks(cuda: SimpleNamespace) -> None:
    drawn: list[int] = []
    failures = [torch.OutOfMemoryError("tried to allocate 3 GiB")]

    def draw() -> torch.Tensor:
        if failures:
            raise failures.pop()
        drawn.append(1)
        return tokens_on_gpu()

    pending = PendingTokens(draw)
    assert (drawn, len(failures)) == ([], 1)
    pending.sample()
    assert pending.tokens() == [3, 5]
    assert drawn == [1]
    assert cuda.said == ["spare memory given back", "pinned", "recorded"]


def test_a_step_whose_tokens_find_no_memory_twice_is_lost(cuda: SimpleNamespace) -> None:
    def draw() -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 3 GiB")

    with pytest.raises(OutOfMemory, match="3 GiB"):
        PendingTokens(draw).sample()


def test_tokens_are_copied_to_pinned_memory_before_the_event_that_is_waited_for(cuda: SimpleNamespace) -> None:
    assert sampled(tokens_on_gpu()).tokens() == [3, 5]
    assert cuda.said == ["pinned", "recorded"]


def test_what_tokens_are_reported_with_goes_the_same_way(cuda: SimpleNamespace) -> None:
    class OnGpuReport(Report):
        def around(self, draw: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Scores]:
            tokens, scores = super().around(draw)
            return tokens.as_subclass(OnGpu), Scores(*(each.as_subclass(OnGpu) for each in scores))

    report = OnGpuReport({1: 1}, torch.eye(2), lambda hidden: hidden, torch.tensor)
    pending = PendingTokens(lambda: torch.tensor([0, 1]), report)
    pending.sample()
    assert cuda.said[-7:] == ["pinned"] * 6 + ["recorded"]
    assert pending.tokens() == [0, 1]
    assert pending.logprobs()[1].tokens == [1]


def test_a_step_on_its_way_is_not_lost_for_want_of_pinned_memory(cuda: SimpleNamespace) -> None:
    cuda.pinning = RuntimeError("CUDA error: out of memory")
    assert sampled(tokens_on_gpu()).tokens() == [3, 5]
    assert cuda.said == ["pageable", "recorded"]


def test_any_other_failure_to_pin_is_the_devices(cuda: SimpleNamespace) -> None:
    cuda.pinning = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        sampled(tokens_on_gpu())


def test_a_step_that_lacked_memory_says_so_and_a_broken_device_stays_one(cuda: SimpleNamespace) -> None:
    pending = sampled(tokens_on_gpu())
    cuda.waiting = torch.OutOfMemoryError("tried to allocate 3 GiB")
    with pytest.raises(OutOfMemory, match="3 GiB"):
        pending.tokens()
    assert cuda.said.pop() == "spare memory given back"
    cuda.waiting = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(RuntimeError, match="launch failure"):
        pending.tokens()
    assert cuda.said == ["pinned", "recorded"]


def test_on_a_cpu_the_next_step_may_overwrite_what_was_handed_over() -> None:
    tokens = torch.tensor([3, 5])
    pending = sampled(tokens)
    tokens.zero_()
    assert pending.tokens() == [3, 5]
