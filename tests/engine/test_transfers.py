"""Copies between host and device: from and to pinned memory, and told to go on, or the host waits for every step before
them. What torch would be asked for a GPU, noted on a CPU."""

from types import SimpleNamespace

import pytest
import torch

from service.engine.device import upload
from service.engine.steps import pending
from service.engine.steps.pending import PendingTokens

CUDA = torch.device("cuda")


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a GPU."""

    is_cuda = True


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    said: list[tuple[object, ...]] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        said.append(("pinned",))
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        said.append(("to", device, non_blocking))
        return tensor

    def copy(tensor: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        said.append(("copied", source.is_cuda, non_blocking))
        return tensor

    for name, method in {"pin_memory": pin_memory, "to": to, "copy_": copy}.items():
        monkeypatch.setattr(torch.Tensor, name, method)
    return said


def test_an_upload_comes_from_pinned_memory_and_is_not_waited_for(said: list[tuple[object, ...]]) -> None:
    upload([1, 2], torch.int64, CUDA)
    assert said == [("pinned",), ("to", CUDA, True)]


def test_tokens_are_fetched_without_a_wait(said: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Into pinned memory, which tests/engine/test_pending.py looks after."""
    tokens = torch.zeros(2, dtype=torch.int64).as_subclass(OnGpu)
    monkeypatch.setattr(pending, "_host_memory", lambda like: torch.empty(like.shape, dtype=like.dtype))
    monkeypatch.setattr(
        torch.cuda, "Event", lambda blocking: SimpleNamespace(record=lambda: said.append(("recorded",)))
    )
    PendingTokens(lambda: tokens).sample()
    assert said == [("copied", True, True), ("recorded",)]
