"""What the operator beneath torch's flash attention is asked for."""

from typing import Any

import pytest
import torch

from service.engine.flash import CAUSAL, FLASH_PAGE, FlashDecode, flash_kernel
from tests.support.varlen import plain_varlen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of every call of the operator."""
    calls: list[dict[str, Any]] = []

    def operator(q: torch.Tensor, *_: Any, **options: Any) -> tuple[torch.Tensor]:
        calls.append(options)
        return (q,)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    return calls


def test_prefill_asks_for_nothing_that_older_releases_of_torch_lack(asked: list[dict[str, Any]]) -> None:
    """torch 2.11's operator takes the window and the scale, but no block table: an unknown name is a TypeError."""
    q, k = torch.zeros(3, 4, 16), torch.zeros(3, 2, 16)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    assert flash_kernel(q, k, k, bounds, bounds, 3, 3, window_size=CAUSAL, enable_gqa=True) is q
    assert asked == [{"scale": None, "window_size_left": -1, "window_size_right": 0}]


def test_pages_come_with_the_bounds_of_their_keys(asked: list[dict[str, Any]]) -> None:
    """The operator refuses bounds for the queries alone, pages or not."""
    decode = FlashDecode(1024, flash_kernel)
    tables = torch.tensor([[1, 2], [3, 0], [0, 0]], dtype=torch.int32)
    lengths = torch.tensor([300, 7], dtype=torch.int32)
    cache = torch.zeros(4, FLASH_PAGE, 2, 16)
    batch = decode.plan(tables, torch.tensor([0, 1]), lengths, cache)
    assert batch.work is not None
    assert [tensor.tolist() for tensor in batch.work] == [[[1, 2], [3, 0]], [0, 1, 2], [0, 300, 307]]
    assert batch.work[2].dtype == torch.int32
    decode.attend(torch.zeros(2, 4, 16), cache, cache, batch, 0.25)
    (options,) = asked
    assert options["seqused_k"] is lengths
    assert options["block_table"] is batch.work[0]


def test_the_stand_in_refuses_what_the_operator_refuses() -> None:
    """Guards the tests that decode through it."""
    q, k = torch.zeros(1, 4, 16), torch.zeros(1, FLASH_PAGE, 2, 16)
    pages = {"seqused_k": torch.ones(1, dtype=torch.int32), "block_table": torch.zeros(1, 1, dtype=torch.int32)}
    with pytest.raises(AttributeError):
        plain_varlen(q, k, k, torch.tensor([0, 1], dtype=torch.int32), None, 1, 1, enable_gqa=True, **pages)  # type: ignore[arg-type]
