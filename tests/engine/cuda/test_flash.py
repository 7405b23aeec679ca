"""What the operator beneath torch's flash attention is asked for."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from service.engine.attention import ChunkSpan, PagedCache
from service.engine.cuda import flash
from service.engine.cuda.flash import CAUSAL, FLASH_PAGE, FlashDecode, FlashPrefillAttention, flash_kernel
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.prefill_check import check_prefill
from tests.engine.kernels.test_selfcheck import CONFIG
from tests.support.varlen import plain_varlen


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every call of the operator, by the names of its schema."""
    calls: list[dict[str, Any]] = []
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]

    def operator(*positional: Any, **options: Any) -> tuple[torch.Tensor]:
        calls.append(dict(zip(names, positional, strict=False)) | options)
        return (positional[0],)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", operator)
    return calls


def test_prefill_asks_for_nothing_that_older_releases_of_torch_lack(asked: list[dict[str, Any]]) -> None:
    """torch 2.11's operator takes the window and the scale, but no block table: an unknown name is a TypeError."""
    q, k = torch.zeros(3, 4, 16), torch.zeros(3, 2, 16)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    assert flash_kernel(q, k, k, bounds, bounds, 3, 3, window_size=CAUSAL, enable_gqa=True) is q
    (arguments,) = asked
    assert list(arguments)[10:] == ["scale", "window_size_left", "window_size_right"]


@pytest.mark.parametrize(
    ("window", "is_causal", "left", "right"), [(CAUSAL, True, -1, 0), ((-1, -1), False, -1, -1)], ids=["causal", "full"]
)
def test_every_argument_reaches_the_operator_under_its_own_name(
    asked: list[dict[str, Any]], window: tuple[int, int], is_causal: bool, left: int, right: int
) -> None:
    """Queries and keys have bounds of their own as soon as a chunk has a context: 2 new positions, 5 in all."""
    q, k, v = torch.zeros(2, 4, 16), torch.zeros(5, 2, 16), torch.ones(5, 2, 16)
    queries, keys = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 5], dtype=torch.int32)
    assert flash_kernel(q, k, v, queries, keys, 2, 5, window_size=window, enable_gqa=True, scale=0.25) is q
    (found,) = asked
    tensors = {"query": q, "key": k, "value": v, "cum_seq_q": queries, "cum_seq_k": keys}
    assert {name: found.pop(name) is tensor for name, tensor in tensors.items()} == dict.fromkeys(tensors, True)
    assert found == {
        "max_q": 2,
        "max_k": 5,
        "dropout_p": 0.0,
        "is_causal": is_causal,
        "return_debug_mask": False,
        "scale": 0.25,
        "window_size_left": left,
        "window_size_right": right,
    }


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
    assert (options["cum_seq_q"] is batch.work[1], options["cum_seq_k"] is batch.work[2]) == (True, True)
    assert (options["max_q"], options["max_k"], options["scale"]) == (1, 1024, 0.25)
    assert options["seqused_k"] is lengths
    assert options["block_table"] is batch.work[0]


def test_the_stand_in_refuses_what_the_operator_refuses() -> None:
    """Guards the tests that decode through it."""
    q, k = torch.zeros(1, 4, 16), torch.zeros(1, FLASH_PAGE, 2, 16)
    pages = {"seqused_k": torch.ones(1, dtype=torch.int32), "block_table": torch.zeros(1, 1, dtype=torch.int32)}
    with pytest.raises(AttributeError):
        plain_varlen(q, k, k, torch.tensor([0, 1], dtype=torch.int32), None, 1, 1, enable_gqa=True, **pages)  # type: ignore[arg-type]


def spans_of(*bounds: tuple[int, int]) -> list[ChunkSpan]:
    """Chunks of these positions, all of blocks that one long prefix shares."""
    spans, first = [], 0
    for start, end in bounds:
        blocks = torch.arange(1, 1 + -(-end // 16), dtype=torch.int32)
        spans.append(ChunkSpan(first, first + end - start, end, blocks))
        first += end - start
    return spans


def gathered(monkeypatch: pytest.MonkeyPatch, at_once: int, *bounds: tuple[int, int]) -> list[int]:
    """How many keys each call of the kernel is given."""
    monkeypatch.setattr(flash, "GATHERED_TOKENS", at_once)
    counts: list[int] = []

    def noting(q: torch.Tensor, k: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        counts.append(k.shape[0])
        return plain_varlen(q, k, *rest, **options)

    spans = spans_of(*bounds)
    rows = spans[-1].last
    cache = PagedCache(replace(CONFIG, num_layers=1), 20, 16, torch.device("cpu"), torch.float32)
    cache.clear(torch.arange(20))
    heads = [torch.zeros(rows, count, CONFIG.head_dim) for count in (CONFIG.num_heads, *[CONFIG.num_kv_heads] * 2)]
    attention = FlashPrefillAttention(cache, torch.zeros(rows, dtype=torch.int64), spans, noting)
    assert attention(0, *heads).shape == heads[0].shape
    return counts


def test_a_crowd_after_one_long_beginning_does_not_copy_it_for_everybody_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """256 of them after 30,000 tokens would take 7 GiB of an 8B model's KV."""
    assert gathered(monkeypatch, 450, *[(200, 208)] * 5) == [416, 416, 208]


def test_what_is_longer_than_is_copied_at_once_is_copied_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gathered(monkeypatch, 100, (0, 3), (200, 208), (16, 17), (0, 4)) == [3, 208, 21]


def test_what_begins_its_sequence_is_copied_by_nobody_and_needs_no_second_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gathered(monkeypatch, 10, (0, 30), (0, 20)) == [50]


@pytest.mark.parametrize("at_once", [1, 40, 100, 1 << 15])
def test_prefill_is_right_in_any_number_of_calls(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "GATHERED_TOKENS", at_once)
    shapes = ServedShapes(replace(CONFIG, max_positions=2000), 16, torch.float32, torch.device("cpu"))
    check_prefill("flash_prefill", partial(FlashPrefillAttention, varlen=plain_varlen), shapes)
