"""How one step's attention is divided over the GPU: decided on the device, so that a CUDA graph serves any lengths.

All KV tiles of a batch are divided, once a step, into near-equal pieces, so that neither one long context among short
ones nor a batch of one leaves the GPU idle, and the number of programs stays fixed (flash-decoding, Dao et al., 2023,
with the split decided per sequence).
"""
# mypy: disable-error-code="untyped-decorator"

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from service.engine.kernels.batch import USUAL_ROWS
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.tuning import AttentionTuning


class WorkPlan(NamedTuple):
    """Items of whole tiles, in int32: those of row r are first_item[r] <= i < first_item[r + 1]."""

    item_row: torch.Tensor  # [rows + spare]: its row, -1 of an item that is not needed
    item_start: torch.Tensor  # [rows + spare]: its first tile
    first_item: torch.Tensor  # [rows + 1]
    tiles_per_item: torch.Tensor  # [1]


@triton.jit
def items_of(tiles, per_item, exists):  # type: ignore[no-untyped-def]
    """How many items of so many tiles each row takes; one at least."""
    return tl.where(exists, tl.maximum(tl.cdiv(tiles, per_item), 1), 0)


@triton.jit
def item_at(item, item_row, item_start, tiles_per_item, lengths, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Whether there is such an item, its row and that one's length, its tiles start <= i < stop, whether they are the
    row's last ones, and whether they are all of them."""
    assigned = tl.load(item_row + item)
    exists = assigned >= 0
    row = tl.maximum(assigned, 0).to(tl.int64)
    length = tl.where(exists, tl.load(lengths + row), 0)
    per_item = tl.load(tiles_per_item)
    tiles = tl.cdiv(length, TILE)
    start = tl.load(item_start + item, mask=exists, other=0)
    stop = tl.minimum(start + per_item, tiles)
    return exists, row, length, start, stop, stop == tiles, tiles <= per_item


@triton.jit
def tiles_in_one_round(tiles, per_item, exists, most):  # type: ignore[no-untyped-def]
    """The least tiles per item, from `per_item` to twice as many, that need at most `most` items; `per_item` if none
    does: a second round then costs less than the longest item would."""
    low, high = per_item, 2 * per_item
    while low < high:
        middle = (low + high) // 2
        if tl.sum(items_of(tiles, middle, exists), 0) <= most:
            high = middle
        else:
            low = middle + 1
    return tl.where(tl.sum(items_of(tiles, low, exists), 0) <= most, low, per_item)


@triton.jit(do_not_specialize=["rows", "spare"], do_not_specialize_on_alignment=["lengths"])
def plan_kernel(
    lengths: tl.tensor,
    item_row: tl.tensor,
    item_start: tl.tensor,
    first_item: tl.tensor,
    tiles_per_item: tl.tensor,
    rows: int,
    spare: int,
    OVERLAPS: tl.constexpr,
    IN_ONE_ROUND: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
) -> None:
    """One program a row. Row r gets the items first_item[r] <= i < first_item[r + 1], each `tiles_per_item` tiles."""
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0)
    everyone = tl.arange(0, BLOCK_ROWS)
    exists = everyone < rows
    tiles = tl.cdiv(tl.load(lengths + everyone, mask=exists, other=0), TILE)
    # Rounding up gives each row at most one item more than its share, hence rows + spare items always suffice.
    per_item = tl.maximum(tl.cdiv(tl.sum(tiles, 0), spare), 1)
    if IN_ONE_ROUND:
        per_item = tiles_in_one_round(tiles, per_item, exists, tl.maximum(spare, rows))
    counts = items_of(tiles, per_item, exists)
    first = tl.sum(tl.where(everyone < row, counts, 0), 0)
    count = tl.sum(tl.where(everyone == row, counts, 0), 0)
    item = tl.arange(0, BLOCK_ITEMS)
    mine = item < count
    tl.store(item_row + first + item, item * 0 + row, mask=mine)
    tl.store(item_start + first + item, item * per_item, mask=mine)
    tl.store(first_item + row, first)
    if row == rows - 1:
        tl.store(first_item + rows, first + count)
        tl.store(tiles_per_item, per_item)
        unused = (item >= first + count) & (item < rows + spare)
        tl.store(item_row + item, item * 0 - 1, mask=unused)


def plan_work(
    lengths: torch.Tensor,
    k_cache: torch.Tensor,
    tuning: AttentionTuning,
    multiprocessors: int,
    *,
    in_one_round: bool = False,
    overlaps: bool = False,
) -> WorkPlan:
    """The division of `lengths` [rows] over so many multiprocessors, into items of whole tiles.

    `in_one_round`: for programs so large that no more of them run at once than the tuning asks for. Rounding each row
    up makes more items than that, and a few programs too many take the whole GPU as long again.
    """
    rows, device = lengths.shape[0], lengths.device
    # There is a program for each item and KV head.
    spare = max(1, tuning.programs_per_multiprocessor * multiprocessors // k_cache.shape[2])
    # Separate tensors: slices of one would be aligned differently for each batch size, and Triton would recompile.
    item_row, item_start = (torch.empty(rows + spare, dtype=torch.int32, device=device) for _ in range(2))
    first_item = torch.empty(rows + 1, dtype=torch.int32, device=device)
    tiles_per_item = torch.empty(1, dtype=torch.int32, device=device)
    most_rows = max(rows, USUAL_ROWS)
    plan_kernel[(rows,)](
        lengths,
        item_row,
        item_start,
        first_item,
        tiles_per_item,
        rows,
        spare,
        IN_ONE_ROUND=in_one_round,
        TILE=tile_for(tuning, k_cache),
        BLOCK_ROWS=triton.next_power_of_2(most_rows),
        BLOCK_ITEMS=triton.next_power_of_2(most_rows + spare),
        num_warps=4,
        **launch_options(overlaps),
    )
    return WorkPlan(item_row, item_start, first_item, tiles_per_item)


def tile_for(tuning: AttentionTuning, k_cache: torch.Tensor) -> int:
    """Tokens of a tile, which lies within one block."""
    return min(tuning.tile, k_cache.shape[1])
