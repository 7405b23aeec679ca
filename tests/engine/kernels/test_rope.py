"""RoPE in place and the cache write, against float64."""

import pytest
import torch

from tests.engine.kernels import exact
from tests.engine.kernels.conftest import HEAD_DIMS, HEADS, ROWS, Subject

THETA = 5e7
BLOCK_SIZES = [16, 32, 64, 128]
# rows, heads, kv_heads, head_dim: every number of rows, and few and many of each layout
LAYOUTS = {(rows, *heads, head_dim) for rows in (2, 12) for heads in HEADS for head_dim in HEAD_DIMS}
LAYOUTS |= {(rows, 9, 3, 64) for rows in ROWS}


def tables(head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    half = head_dim // 2
    angles = torch.outer(torch.arange(4096.0).double(), THETA ** (-torch.arange(half).double() / half))
    cos, sin = (torch.cat((t, t), dim=-1).float().to(device) for t in (angles.cos(), angles.sin()))
    return cos, sin


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("rows", "heads", "kv_heads", "head_dim"), sorted(LAYOUTS))
def test_queries_and_keys_turn_and_only_their_places_are_written(
    subject: Subject, rows: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    block_size = BLOCK_SIZES[rows % len(BLOCK_SIZES)]
    before = torch.randn(rows, heads + 2 * kv_heads, head_dim).to(dtype)
    positions = torch.randint(0, 4096, (rows,))
    places = torch.randperm(6 * block_size)[:rows] + block_size
    caches = torch.full((2, 7, block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    qkv, k_cache, v_cache = before.flatten(1).clone().to(subject.device), *caches.to(subject.device)
    subject.ops.rotate_and_cache(
        qkv,
        *tables(head_dim, subject.device),
        positions.to(subject.device),
        places.to(subject.device),
        k_cache,
        v_cache,
    )
    after = qkv.view_as(before).cpu()
    turned = exact.rotate(before[:, : heads + kv_heads], positions, THETA)
    assert exact.error(after[:, : heads + kv_heads], turned) < exact.TOLERANCE[dtype]
    assert torch.equal(after[:, heads + kv_heads :], before[:, heads + kv_heads :])
    flat = k_cache.cpu().flatten(0, 1), v_cache.cpu().flatten(0, 1)
    assert torch.equal(flat[0][places], after[:, heads : heads + kv_heads])
    assert torch.equal(flat[1][places], before[:, heads + kv_heads :])
    untouched = torch.ones(flat[0].shape[0], dtype=torch.bool).index_fill_(0, places, False)
    assert all(t[untouched].isnan().all() for t in flat)


def test_padding_rows_write_to_the_block_that_belongs_to_nobody(subject: Subject) -> None:
    qkv = torch.randn(1, 3 * 64).repeat(4, 1).to(subject.device)
    cache = torch.full((2, 3, 16, 1, 64), torch.nan, device=subject.device)
    zeros = torch.zeros(4, dtype=torch.int64, device=subject.device)
    subject.ops.rotate_and_cache(qkv, *tables(64, subject.device), zeros, zeros, cache[0], cache[1])
    assert cache[:, 0, 0].isfinite().all()
    assert cache[:, 0, 1:].isnan().all()
    assert cache[:, 1:].isnan().all()


def test_tables_of_the_models_own_type_are_read_as_they_are(subject: Subject) -> None:
    qkv = torch.randn(2, 3 * 64).to(subject.device, torch.bfloat16)
    cos, sin = (t.bfloat16() for t in tables(64, subject.device))
    cache = torch.zeros(2, 2, 16, 1, 64, dtype=torch.bfloat16, device=subject.device)
    rows = torch.tensor([3, 1000], device=subject.device)
    before = qkv.clone().view(2, 3, 64)
    subject.ops.rotate_and_cache(qkv, cos, sin, rows, rows % 32, cache[0], cache[1])
    first, second = before[:, :2].double().chunk(2, dim=-1)
    c, s = cos[rows, None, :32].double(), sin[rows, None, :32].double()
    expected = torch.cat((first * c - second * s, second * c + first * s), dim=-1)
    assert exact.error(qkv.view(2, 3, 64)[:, :2], expected) < exact.TOLERANCE[torch.bfloat16]
