"""Decode attention that rotates and caches by itself, against float64."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from service.engine.config import ModelConfig
from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.ops import Heads
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import MOST_EXACT, Subject, kernels
from tests.engine.kernels.test_decode_attention import CASES, RAGGED, problem
from tests.engine.kernels.test_selfcheck import CONFIG

Layout = tuple[int, int, int]
"""Query heads, KV heads, head_dim."""


class Decode(NamedTuple):
    """Sequences whose newest token is known by its projection alone; NaN stands where its KV goes."""

    config: ModelConfig
    qkv: torch.Tensor
    angles: tuple[torch.Tensor, torch.Tensor]
    caches: list[torch.Tensor]
    batch: DecodeBatch
    places: torch.Tensor


def decode_of(layout: Layout, block_size: int, lengths: Sequence[int], dtype: torch.dtype) -> Decode:
    heads, kv_heads, head_dim = layout
    config = replace(CONFIG, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim)
    _, k_cache, v_cache, batch = problem(*layout, block_size, lengths, dtype)
    last = batch.lengths.long() - 1
    places = batch.block_tables[batch.slots, last // block_size].long() * block_size + last % block_size
    caches = [k_cache.clone(), v_cache.clone()]
    for cache in caches:
        cache.flatten(0, 1)[places] = torch.nan
    angles = torch.outer(torch.arange(max(lengths) + 3.0), 1e-4 ** (torch.arange(head_dim // 2) / (head_dim // 2)))
    cos, sin = (torch.cat((each, each), dim=-1).to(dtype) for each in (angles.cos(), angles.sin()))
    qkv = torch.randn(len(lengths), (heads + 2 * kv_heads) * head_dim).to(dtype)
    return Decode(config, qkv, (cos, sin), caches, batch, places)


def attend(subject: Subject, decode: Decode) -> torch.Tensor:
    """The result; the caches are what the kernel makes of them."""
    device = subject.device
    qkv, caches, batch = decode.qkv.to(device), [cache.to(device) for cache in decode.caches], decode.batch
    tables, slots, lengths = (t.to(device) for t in (batch.block_tables, batch.slots, batch.lengths))
    planned = subject.ops.plan_decode(tables, slots, lengths, caches[0])
    angles = decode.angles[0].to(device), decode.angles[1].to(device)
    assert subject.ops.rotating_attention is not None
    heads, scale = Heads.of(qkv, decode.config), decode.config.head_dim**-0.5
    result = subject.ops.rotating_attention(heads, angles, (caches[0], caches[1]), planned, scale)
    assert torch.equal(qkv.cpu(), decode.qkv), "the projection stays as it is"
    for cache, mine in zip(decode.caches, caches, strict=True):
        cache.copy_(mine)
    return result.cpu()


def rotated(decode: Decode) -> Heads:
    """In float64, rounded once to the served type as what the cache keeps."""
    q, k, v = Heads.of(decode.qkv.double(), decode.config)
    positions = decode.batch.lengths.long() - 1
    cos, sin = (each.double()[positions, None] for each in decode.angles)

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(decode.qkv.dtype)

    return Heads(turned(q), turned(k), v.to(decode.qkv.dtype))


def worst_error(subject: Subject, decode: Decode) -> float:
    """Of the result, by row; after a look at the caches."""
    heads, before = rotated(decode), [cache.clone() for cache in decode.caches]
    result = attend(subject, decode)
    for cache, old, new in zip(decode.caches, before, heads[1:], strict=True):
        mine, due = cache.flatten(0, 1), old.flatten(0, 1)
        assert exact.error(mine[decode.places].flatten(1), new.flatten(1)) < 2 * exact.TOLERANCE[new.dtype]
        due[decode.places] = mine[decode.places]
        assert torch.equal(mine.nan_to_num(7.0), due.nan_to_num(7.0)), "nothing else is written"
    errors, block_size = [], decode.caches[0].shape[1]
    for row, length in enumerate(decode.batch.lengths.tolist()):
        blocks = decode.batch.block_tables[decode.batch.slots[row]].long()[: -(-length // block_size)]
        k, v = (cache[blocks].flatten(0, 1)[:length] for cache in decode.caches)
        errors.append(exact.error(result[row], exact.attention(heads.q[row], k, v, decode.config.head_dim**-0.5)))
    return max(errors)


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "lengths"), CASES)
def test_each_query_sees_its_own_sequence_and_its_new_token(
    kernel_subject: Subject,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    lengths: list[int],
    dtype: torch.dtype,
) -> None:
    kernel_subject.skip_unless_it_multiplies(dtype)
    torch.manual_seed(len(lengths))
    decode = decode_of((heads, kv_heads, head_dim), block_size, lengths, dtype)
    assert worst_error(kernel_subject, decode) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "dtype"), MOST_EXACT)
@pytest.mark.parametrize(("rows", "longest", "heads", "kv_heads", "head_dim"), RAGGED)
def test_rows_of_all_lengths_are_seen_to_their_ends(
    rows: int, longest: int, heads: int, kv_heads: int, head_dim: int, how: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    lengths = torch.logspace(math.log10(longest), 0, rows).round().int().tolist()
    decode = decode_of((heads, kv_heads, head_dim), 64, lengths, dtype)
    assert worst_error(kernels(how, multiprocessors=16), decode) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("length", [*range(1, 5), *range(62, 68), *range(126, 131), 193])
def test_a_context_of_any_length_up_to_and_behind_a_tile(kernel_subject: Subject, length: int) -> None:
    """The new token may be alone in its tile, or in its item."""
    torch.manual_seed(length)
    decode = decode_of((8, 2, 64), 64, [length], torch.float32)
    assert worst_error(kernel_subject, decode) < 2 * exact.TOLERANCE[torch.float32]


def test_a_new_token_that_outweighs_all_others_and_one_that_counts_for_nothing(kernel_subject: Subject) -> None:
    torch.manual_seed(3)
    for loud in (8.0, -8.0):
        decode = decode_of((8, 2, 64), 64, [300, 70], torch.float32)
        heads = Heads.of(decode.qkv, decode.config)
        heads.k.copy_(heads.q.view(2, 2, 4, 64).mean(2) * loud)
        assert worst_error(kernel_subject, decode) < 2 * exact.TOLERANCE[torch.float32]


def test_rows_of_padding_share_a_place_and_disturb_nobody(kernel_subject: Subject) -> None:
    """All stand in the spare slot, whose table names block 0 and nothing else."""
    torch.manual_seed(5)
    decode = decode_of((8, 2, 64), 16, [40, 1, 1], torch.float32)
    decode.batch.block_tables[decode.batch.slots[1:]] = 0
    decode.batch.slots[2] = decode.batch.slots[1]
    decode.qkv[2] = decode.qkv[1]
    decode.places[1:] = 0
    assert worst_error(kernel_subject, decode) < 2 * exact.TOLERANCE[torch.float32]


def test_a_row_without_tokens_writes_nothing_and_is_zero(kernel_subject: Subject) -> None:
    decode = decode_of((4, 2, 64), 16, [20, 1], torch.float32)
    decode.batch.lengths[1] = 0
    before = decode.caches[0].clone()
    result = attend(kernel_subject, decode)
    assert torch.equal(result[1], torch.zeros_like(result[1]))
    assert result[0].isfinite().all()
    place = decode.places[1]
    assert before.flatten(0, 1)[place].isnan().all()
    assert decode.caches[0].flatten(0, 1)[place].isnan().all()
