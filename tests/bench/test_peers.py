"""What a peer did not finish is not counted as its speed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bench.load import Prompts
from tests.bench.peers import ContinuousBatching
from tests.bench.scale import TINY, ready_model


def answers(*lengths: int) -> dict[str, SimpleNamespace]:
    """What transformers gives for requests that were handed in at second 10 and got a token a second from 12 on."""
    return {
        str(index): SimpleNamespace(
            created_time=10.0,
            generated_tokens=[7] * length,
            timestamps=[12.0 + i for i in range(length)],
        )
        for index, length in enumerate(lengths)
    }


@pytest.fixture
def peer(tmp_path: Path) -> ContinuousBatching:
    return ContinuousBatching(ready_model(tmp_path, TINY.shape), torch.device("cpu"))


def test_its_times_begin_when_requests_are_handed_in(peer: ContinuousBatching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "_model", SimpleNamespace(generate_batch=lambda *a, **k: answers(4, 4)))
    rates = peer.serve(Prompts(100).spread(2, (8, 8), 4))
    assert (rates.tokens_per_second, rates.ttft_p50, rates.tpot_p50) == (8 / 5, 2.0, 1.0)


@pytest.mark.parametrize("lengths", [(4,), (4, 3), ()], ids=["one is missing", "one was cut short", "all are missing"])
def test_requests_that_its_thread_died_on_are_an_error(
    peer: ContinuousBatching, monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(peer, "_model", SimpleNamespace(generate_batch=lambda *a, **k: answers(*lengths)))
    with pytest.raises(RuntimeError, match="of 2 requests"):
        peer.serve(Prompts(100).spread(2, (8, 8), 4))


def test_a_new_workload_has_a_manager_of_its_own_that_is_warm(
    peer: ContinuousBatching, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def generate(inputs: list[list[int]], *_: Any, **__: Any) -> dict[str, SimpleNamespace]:
        done.append(f"serve {len(inputs)}")
        return answers(*[4] * len(inputs))

    def destroy() -> None:
        done.append("forget")

    model = SimpleNamespace(generate_batch=generate, destroy_cached_continuous_batching_manager=destroy)
    monkeypatch.setattr(peer, "_model", model)
    prompts = Prompts(100)
    peer.warmed_up(prompts.spread(2, (8, 8), 4), prompts.spread(2, (8, 8), 4))
    assert done == ["forget", "serve 2", "serve 2"]
