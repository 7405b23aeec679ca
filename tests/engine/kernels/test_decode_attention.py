"""Paged decode attention, and the plan that divides it, against float64."""

import math
from collections.abc import Sequence

import pytest
import torch

from service.engine.kernels.batch import DecodeBatch
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import HEAD_DIMS, HEADS, INTERPRETED, LONGEST, MOST_EXACT, ROWS, Subject, kernels

# heads, kv_heads, head_dim, block_size, lengths. Each pair of (head grouping, head_dim), (grouping, block size) and
# (head_dim, block size) occurs; lengths at both sides of every border, and one long among short ones.
CASES: list[tuple[int, int, int, int, list[int]]] = [
    (32, 2, 128, 64, [1]),
    (32, 2, 128, 64, [5000, 1, 64]),
    (32, 2, 64, 16, [17, 16, 15, 1, 33]),
    (32, 2, 64, 32, [700, 31]),
    (9, 3, 64, 64, [65, 63, 64, 128, 127, 129, 1, 2, 300]),
    (9, 3, 128, 32, [200, 5]),
    (9, 3, 128, 16, [16, 1, 17]),
    (8, 8, 64, 128, [129, 128, 1]),
    (8, 8, 128, 64, [200, 1, 1, 1]),
    (8, 8, 64, 32, [1, 32, 33, 64]),
]
LAYOUTS = [(*heads, head_dim) for heads in HEADS for head_dim in HEAD_DIMS]
# Every number of rows; those from 12 on take each layout once, to the longest context.
RAGGED = [(rows, LONGEST if rows >= 12 else 200, *LAYOUTS[rows % len(LAYOUTS)]) for rows in ROWS]


def problem(
    heads: int, kv_heads: int, head_dim: int, block_size: int, lengths: Sequence[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecodeBatch]:
    """Sequences in shuffled blocks; NaN in every place that none of them wrote, scratch block and table rests too."""
    width = max(1, *(-(-n // block_size) for n in lengths)) + 2
    rows = len(lengths)
    tables = torch.zeros(rows + 3, width, dtype=torch.int32)
    blocks = torch.randperm(rows * width) + 1
    slots = torch.randperm(rows + 3)[:rows]
    caches = torch.full((2, rows * width + 1, block_size, kv_heads, head_dim), torch.nan, dtype=dtype)
    for row, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
        tables[slot] = blocks[row * width : (row + 1) * width]
        for start in range(0, length, block_size):
            used = min(block_size, length - start)
            block = tables[slot, start // block_size]
            caches[:, block, :used] = torch.randn(2, used, kv_heads, head_dim).to(dtype)
    q = torch.randn(rows, heads + 2 * kv_heads, head_dim).to(dtype)[:, :heads]
    return q, caches[0], caches[1], DecodeBatch(tables, slots, torch.tensor(lengths, dtype=torch.int32))


def attend(
    subject: Subject, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch
) -> torch.Tensor:
    q, k_cache, v_cache, tables, slots, lengths = (
        t.to(subject.device) for t in (q, k_cache, v_cache, batch.block_tables, batch.slots, batch.lengths)
    )
    planned = subject.ops.plan_decode(tables, slots, lengths, k_cache)
    return subject.ops.decode_attention(q, k_cache, v_cache, planned, q.shape[2] ** -0.5).cpu()


def worst_error(
    result: torch.Tensor, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch
) -> float:
    errors = []
    for row, length in enumerate(batch.lengths.tolist()):
        blocks = batch.block_tables[batch.slots[row]].long()
        k, v = (cache[blocks].flatten(0, 1)[:length] for cache in (k_cache, v_cache))
        errors.append(exact.error(result[row], exact.attention(q[row], k, v, q.shape[2] ** -0.5)))
    return max(errors)


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "block_size", "lengths"), CASES)
def test_each_query_sees_its_own_sequence_and_nothing_else(
    subject: Subject,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    lengths: list[int],
    dtype: torch.dtype,
) -> None:
    subject.skip_unless_it_multiplies(dtype)
    torch.manual_seed(len(lengths))
    q, k_cache, v_cache, batch = problem(heads, kv_heads, head_dim, block_size, lengths, dtype)
    result = attend(subject, q, k_cache, v_cache, batch)
    assert worst_error(result, q, k_cache, v_cache, batch) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "dtype"), MOST_EXACT)
@pytest.mark.parametrize(("rows", "longest", "heads", "kv_heads", "head_dim"), RAGGED)
def test_rows_of_all_lengths_are_seen_to_their_ends(
    rows: int, longest: int, heads: int, kv_heads: int, head_dim: int, how: str, dtype: torch.dtype
) -> None:
    subject = kernels(how, multiprocessors=16)  # enough for 8 KV heads to divide the long ones
    torch.manual_seed(rows)
    lengths = torch.logspace(math.log10(longest), 0, rows).round().int().tolist()
    problem_of_all = problem(heads, kv_heads, head_dim, 64, lengths, dtype)
    assert worst_error(attend(subject, *problem_of_all), *problem_of_all) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("lengths", [[3000, 5, 1270], [8000], [3000, *[5] * 8, 1270]])
@pytest.mark.parametrize("how", ["interpreter", pytest.param("compiled", marks=pytest.mark.gpu)])
def test_more_pieces_than_one_turn_of_the_merge_takes_are_all_merged(how: str, lengths: list[int]) -> None:
    """On a GPU of 132 multiprocessors: 47 pieces and 20, 125, and those of the first beside more than few rows; merged
    64 at a time, and 16, with short sequences between them."""
    subject = kernels(how, multiprocessors=132)
    torch.manual_seed(7)
    q, k_cache, v_cache, batch = problem(8, 2, 64, 64, lengths, torch.float32)
    # Sharp scores: each head has its largest in another turn, so that the rescaling between turns counts.
    sharp = q * 4, k_cache, v_cache, batch
    assert worst_error(attend(subject, *sharp), *sharp) < 2 * exact.TOLERANCE[torch.float32]


def test_a_sequence_gets_the_same_whoever_its_neighbours_are(subject: Subject) -> None:
    torch.manual_seed(0)
    q, k_cache, v_cache, batch = problem(8, 2, 64, 16, [40, 300, 7, 16], torch.float32)
    together = attend(subject, q, k_cache, v_cache, batch)
    for row in range(4):
        alone = DecodeBatch(batch.block_tables, batch.slots[row : row + 1], batch.lengths[row : row + 1])
        assert exact.error(attend(subject, q[row : row + 1], k_cache, v_cache, alone), together[row : row + 1]) < 1e-6


def test_large_scores_overflow_nowhere(subject: Subject) -> None:
    q, k_cache, v_cache, batch = problem(4, 2, 64, 16, [50], torch.float32)
    large = q * 100, k_cache * 100, v_cache, batch
    assert worst_error(attend(subject, *large), *large) < 1e-4


def test_a_row_without_tokens_is_zero_and_not_nan(subject: Subject) -> None:
    q, k_cache, v_cache, batch = problem(4, 2, 64, 16, [20, 0], torch.float32)
    result = attend(subject, q, k_cache, v_cache, batch)
    assert torch.equal(result[1], torch.zeros_like(result[1]))
    assert result[0].isfinite().all()


@pytest.mark.parametrize("lengths", [[300] * 100, [1] * 300, [64 * 40] * 257])
def test_plans_of_many_rows_on_a_large_gpu_name_every_item(lengths: list[int]) -> None:
    """More items than rows, and more rows than usual: each item has a row, or none."""
    plan = kernels("interpreter", 132).ops.plan_decode
    rows = len(lengths)
    cache = torch.zeros(1, 64, 2, 16)
    batch = plan(torch.zeros(rows, 1), torch.arange(rows), torch.tensor(lengths, dtype=torch.int32), cache)
    assert batch.work is not None
    item_row, _, first_item, _ = (t.tolist() for t in batch.work)
    assigned = first_item[rows]
    assert [row for row in item_row if row >= 0] == sorted(item_row[:assigned])
    assert set(item_row[assigned:]) <= {-1}
    assert set(item_row[:assigned]) == set(range(rows))


PLANS = [[1], [5000], [0, 0], [64, 65, 1], [30_000] + [200] * 16, [1] * 17, [*range(1, 4000, 301)]]


@pytest.mark.parametrize("lengths", PLANS)
def test_a_plan_covers_every_tile_once_in_near_equal_pieces(kernel_subject: Subject, lengths: list[int]) -> None:
    rows, tile = len(lengths), 64
    device = kernel_subject.device
    tables = torch.zeros(rows, 1, dtype=torch.int32, device=device)
    cache = torch.zeros(1, tile, 2, 16, device=device)
    slots = torch.arange(rows, device=device)
    batch = kernel_subject.ops.plan_decode(
        tables, slots, torch.tensor(lengths, dtype=torch.int32, device=device), cache
    )
    assert batch.work is not None
    item_row, item_start, first_item, per_item = (t.tolist() for t in batch.work)
    spare = len(item_row) - rows
    assert per_item == [max(1, math.ceil(sum(math.ceil(length / tile) for length in lengths) / spare))]
    assigned = [item for item, row in enumerate(item_row) if row >= 0]
    assert assigned == [*range(len(assigned))]  # the unused ones are the last ones
    assert first_item[0] == 0
    assert first_item[rows] == len(assigned)
    for row, length in enumerate(lengths):
        items = range(first_item[row], first_item[row + 1])
        assert [item_row[i] for i in items] == [row] * len(items)
        tiles = -(-length // tile)
        assert [item_start[i] for i in items] == [*range(0, max(tiles, 1), per_item[0])]


@pytest.mark.parametrize(("multiprocessors", "items"), [(4, 6), (16, 20), (132, 79)])
def test_one_long_context_occupies_the_whole_gpu(multiprocessors: int, items: int) -> None:
    """79 tiles, over three programs a multiprocessor, half of them for each of two KV heads."""
    assert INTERPRETED.attention.programs_per_multiprocessor == 3
    plan = kernels("interpreter", multiprocessors).ops.plan_decode
    lengths, cache = torch.tensor([LONGEST], dtype=torch.int32), torch.zeros(1, 64, 2, 16)
    batch = plan(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), lengths, cache)
    assert batch.work is not None
    _, _, first_item, _ = batch.work
    assert first_item.tolist() == [0, items]
