"""How one step's attention is divided over the GPU: decided on the device, so that a CUDA graph serves any lengths.

All KV tiles of a batch are divided, once a step, into near-equal pieces, so that neither one long context among short
ones nor a batch of one leaves the GPU idle, and the number of programs stays fixed (flash-decoding, Dao et al., 2023,
with the split decided per sequence).
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.batch import USUAL_ROWS
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.tuning import AttentionTuning

Work = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""item_row and item_start [rows + spare], first_item [rows + 1], tiles_per_item [1]; all int32."""


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
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
) -> None:
    """One program a row. Row r gets the items first_item[r] <= i < first_item[r + 1], each `tiles_per_item` tiles."""
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0)
    everyone = tl.arange(0, BLOCK_ROWS)
    tiles = tl.cdiv(tl.load(lengths + everyone, mask=everyone < rows, other=0), TILE)
    # Rounding up gives each row at most one item more than its share, hence rows + spare items always suffice.
    per_item = tl.maximum(tl.cdiv(tl.sum(tiles, 0), spare), 1)
    counts = tl.where(everyone < rows, tl.maximum(tl.cdiv(tiles, per_item), 1), 0)
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
    overlaps: bool = False,
) -> Work:
    """The division of `lengths` [rows] over so many multiprocessors, into items of whole tiles."""
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
        TILE=tile_for(tuning, k_cache),
        BLOCK_ROWS=triton.next_power_of_2(most_rows),
        BLOCK_ITEMS=triton.next_power_of_2(most_rows + spare),
        num_warps=4,
        **launch_options(overlaps),
    )
    return item_row, item_start, first_item, tiles_per_item


def tile_for(tuning: AttentionTuning, k_cache: torch.Tensor) -> int:
    """Tokens of a tile, which lies within one block."""
    return min(tuning.tile, k_cache.shape[1])
