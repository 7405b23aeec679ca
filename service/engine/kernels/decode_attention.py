"""Attention of one query a sequence over its paged KV: the context split over programs, partial results merged.

Flash-decoding (Dao et al., 2023) with the split decided per sequence on the device: `plan_decode` divides all KV tiles
of the batch, once a step, into near-equal pieces, so that neither one long context among short ones nor a batch of one
leaves the GPU idle, and the grid stays fixed for a CUDA graph. The query heads that share a KV head form one
tensor-core tile, so KV is read once: 32:2 heads read 1/16 of what repeated heads would. Measured on an H100 at
64 x 4096 tokens with a fixed split: 0.77 of the read limit for the whole step.
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.tuning import AttentionTuning

MIN_DOT = 16
"""Least side of a tensor-core tile: smaller head groups are padded to it."""
LOG2_E = 1.4426950408889634
MERGED_HEADS = 4
"""Heads that one program merges, a warp for each."""
USUAL_ROWS = 256
"""Batches up to this many rows share one compiled plan."""
EMPTY = tl.constexpr(-1.0e30)
"""Stands for minus infinity, without its NaN in differences."""


@triton.jit(do_not_specialize=["rows"])
def plan_kernel(
    lengths: tl.tensor,
    item_row: tl.tensor,
    item_start: tl.tensor,
    first_item: tl.tensor,
    tiles_per_item: tl.tensor,
    rows: int,
    OVERLAPS: tl.constexpr,
    SPARE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
) -> None:
    """One program a row. Row r gets the items first_item[r] <= i < first_item[r + 1], each `tiles_per_item` tiles."""
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0)
    everyone = tl.arange(0, BLOCK_ROWS)
    tiles = tl.cdiv(tl.load(lengths + everyone, mask=everyone < rows, other=0), TILE)
    # Rounding up gives each row at most one item more than its share, hence rows + SPARE items always suffice.
    per_item = tl.maximum(tl.cdiv(tl.sum(tiles, 0), SPARE), 1)
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
        unused = (item >= first + count) & (item < rows + SPARE)
        tl.store(item_row + item, item * 0 - 1, mask=unused)


@triton.jit
def attend_tile(query, k, v, inside, scale, best, total, summed):  # type: ignore[no-untyped-def]
    """One step of the running softmax (Milakov and Gimelshein, 2018), in powers of two, which the GPU has as one
    instruction: largest score, sum of weights and weighted values so far, all relative to that largest score."""
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(inside[None, :], scores, EMPTY)
    largest = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - largest[:, None])
    shrink = tl.exp2(best - largest)
    summed = tl.dot(weights.to(v.dtype), v, summed * shrink[:, None], input_precision="ieee")
    return largest, total * shrink + tl.sum(weights, 1), summed


@triton.jit
def attend_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    block_tables: tl.tensor,
    slots: tl.tensor,
    lengths: tl.tensor,
    item_row: tl.tensor,
    item_start: tl.tensor,
    tiles_per_item: tl.tensor,
    partial: tl.tensor,
    partial_lse: tl.tensor,
    out: tl.tensor,
    scale: float,
    q_stride: int,
    table_stride: int,
    OVERLAPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program an item and KV head. A row of a single item is finished here, others leave partial results."""
    wait_for_inputs(OVERLAPS)
    item, kv_head = tl.program_id(0), tl.program_id(1)
    assigned = tl.load(item_row + item)
    row = tl.maximum(assigned, 0).to(tl.int64)
    length = tl.where(assigned >= 0, tl.load(lengths + row), 0)
    per_item = tl.load(tiles_per_item)
    tiles = tl.cdiv(length, TILE)
    start = tl.load(item_start + item, mask=assigned >= 0, other=0)
    stop = tl.minimum(start + per_item, tiles)
    table = block_tables + tl.load(slots + row) * table_stride

    member = tl.arange(0, GROUP_PAD)
    lane = tl.arange(0, HEAD_DIM)
    heads = (kv_head * GROUP + member)[:, None] * HEAD_DIM + lane[None, :]
    real = (member < GROUP)[:, None]
    query = tl.load(q + row * q_stride + heads, mask=real, other=0.0)
    best = tl.full([GROUP_PAD], EMPTY, tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    summed = tl.zeros([GROUP_PAD, HEAD_DIM], tl.float32)
    # Each block's number is there one turn before it is needed: the loads of KV can then run several tiles ahead.
    block = tl.load(table + start * TILE // BLOCK_SIZE)
    for tile in range(start, stop):
        next_block = tl.load(table + tl.minimum(tile + 1, stop - 1) * TILE // BLOCK_SIZE)
        inside = tile * TILE + tl.arange(0, TILE) < length
        places = block.to(tl.int64) * BLOCK_SIZE + tile * TILE % BLOCK_SIZE + tl.arange(0, TILE)
        at = (places[:, None] * KV_HEADS + kv_head) * HEAD_DIM + lane[None, :]
        # The mask also keeps a stranger's NaN behind the sequence's end out of the sums.
        k = tl.load(k_cache + at, mask=inside[:, None], other=0.0)
        v = tl.load(v_cache + at, mask=inside[:, None], other=0.0)
        best, total, summed = attend_tile(query, k, v, inside, scale, best, total, summed)
        block = next_block

    total = tl.maximum(total, 1e-30)
    result = summed / total[:, None]
    alone = (assigned >= 0) & (tiles <= per_item)
    shared = (assigned >= 0) & (tiles > per_item)
    tl.store(out + row * KV_HEADS * GROUP * HEAD_DIM + heads, result.to(out.dtype.element_ty), mask=real & alone)
    slot = (item * KV_HEADS + kv_head) * GROUP + member
    tl.store(partial + slot[:, None] * HEAD_DIM + lane[None, :], result, mask=real & shared)
    tl.store(partial_lse + slot, best + tl.log2(total), mask=(member < GROUP) & shared)


@triton.jit
def merge_kernel(
    partial: tl.tensor,
    partial_lse: tl.tensor,
    first_item: tl.tensor,
    out: tl.tensor,
    OVERLAPS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
) -> None:
    """One program a row and some heads: the partial results weighted by their shares of the softmax's denominator.

    Several heads, since in a large batch no row is divided, and thousands of programs would come to find nothing to do.
    """
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    real = head < HEADS
    first = tl.load(first_item + row)
    last = tl.load(first_item + row + 1)
    lane = tl.arange(0, HEAD_DIM)
    best = tl.full([BLOCK_HEADS], EMPTY, tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    summed = tl.zeros([BLOCK_HEADS, HEAD_DIM], tl.float32)
    # A row of one item was finished by attend_kernel.
    first = tl.where(last - first > 1, first, last)
    for start in range(first, last, BLOCK_ITEMS):
        item = start + tl.arange(0, BLOCK_ITEMS)
        there = (item < last)[:, None] & real[None, :]
        slot = item[:, None] * HEADS + head[None, :]
        lse = tl.load(partial_lse + slot, mask=there, other=EMPTY)
        largest = tl.maximum(best, tl.max(lse, 0))
        weights = tl.where(there, tl.exp2(lse - largest[None, :]), 0.0)
        at = slot[:, :, None] * HEAD_DIM + lane[None, None, :]
        parts = tl.load(partial + at, mask=there[:, :, None], other=0.0)
        shrink = tl.exp2(best - largest)
        summed = summed * shrink[:, None] + tl.sum(parts * weights[:, :, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        best = largest
    result = summed / tl.maximum(total, 1e-30)[:, None]
    at = (row * HEADS + head)[:, None] * HEAD_DIM + lane[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None] & (first < last))


class PagedDecodeAttention:
    """Plan, attend, merge. head_dim and block size are powers of two of at least 16; anything else fails to compile."""

    def __init__(self, tuning: AttentionTuning, multiprocessors: int, *, overlaps: bool = False) -> None:
        self._tuning = tuning
        self._launch = launch_options(overlaps)
        self._programs = tuning.programs_per_multiprocessor * multiprocessors

    def plan(
        self, block_tables: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, k_cache: torch.Tensor
    ) -> DecodeBatch:
        """See `ops.PlanDecode`. The work is (item_row, item_start, first_item, tiles_per_item), all int32."""
        rows = lengths.shape[0]
        spare = max(1, self._programs // k_cache.shape[2])
        # Cut out of one tensor, their alignment, and with it the compiled kernel, would hang on the batch.
        item_row, item_start = (torch.empty(rows + spare, dtype=torch.int32, device=lengths.device) for _ in range(2))
        first_item = torch.empty(rows + 1, dtype=torch.int32, device=lengths.device)
        tiles_per_item = torch.empty(1, dtype=torch.int32, device=lengths.device)
        most_rows = max(rows, USUAL_ROWS)
        plan_kernel[(rows,)](
            lengths,
            item_row,
            item_start,
            first_item,
            tiles_per_item,
            rows,
            SPARE=spare,
            TILE=self._tile(k_cache),
            BLOCK_ROWS=triton.next_power_of_2(most_rows),
            BLOCK_ITEMS=triton.next_power_of_2(most_rows + spare),
            num_warps=4,
            **self._launch,
        )
        return DecodeBatch(block_tables, slots, lengths, (item_row, item_start, first_item, tiles_per_item))

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        """See `ops.DecodeAttention`; q may be a view of the fused projection, the caches are contiguous."""
        assert batch.work is not None
        item_row, item_start, first_item, tiles_per_item = batch.work
        rows, heads, head_dim = q.shape
        block_size, kv_heads = k_cache.shape[1:3]
        group, items = heads // kv_heads, item_row.shape[0]
        partial = torch.empty(items, heads, head_dim, dtype=torch.float32, device=q.device)
        partial_lse = torch.empty(items, heads, dtype=torch.float32, device=q.device)
        out = torch.empty(rows, heads, head_dim, dtype=q.dtype, device=q.device)
        attend_kernel[(items, kv_heads)](
            q,
            k_cache,
            v_cache,
            batch.block_tables,
            batch.slots,
            batch.lengths,
            item_row,
            item_start,
            tiles_per_item,
            partial,
            partial_lse,
            out,
            scale * LOG2_E,
            q.stride(0),
            batch.block_tables.stride(0),
            KV_HEADS=kv_heads,
            GROUP=group,
            GROUP_PAD=max(MIN_DOT, triton.next_power_of_2(group)),
            HEAD_DIM=head_dim,
            BLOCK_SIZE=block_size,
            TILE=self._tile(k_cache),
            num_warps=self._tuning.warps,
            num_stages=self._tuning.stages,
            **self._launch,
        )
        merge_kernel[(rows, triton.cdiv(heads, MERGED_HEADS))](
            partial,
            partial_lse,
            first_item,
            out,
            HEADS=heads,
            HEAD_DIM=head_dim,
            BLOCK_ITEMS=16,
            BLOCK_HEADS=MERGED_HEADS,
            num_warps=MERGED_HEADS,
            **self._launch,
        )
        return out

    def _tile(self, k_cache: torch.Tensor) -> int:
        return min(self._tuning.tile, k_cache.shape[1])
