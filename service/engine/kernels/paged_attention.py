"""Attention over paged KV: each row's context split over programs, partial results merged.

A row is one query of a sequence in a decode, or several successive ones of a prompt. The query heads that share a KV
head form one tensor-core tile with them, so KV is read once: 32:2 heads read 1/16 of what repeated heads would.
Measured on an H100 at 64 x 4096 decodes with a fixed split: 0.77 of the read limit for the whole step.
"""
# mypy: disable-error-code="untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from service.engine.kernels.attention_plan import WorkPlan, tile_for
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.tuning import AttentionTuning

MIN_DOT = 16
"""Least side of a tensor-core tile: smaller head groups are padded to it."""
LOG2_E = 1.4426950408889634
EMPTY = tl.constexpr(-1.0e30)
"""Stands for minus infinity, without its NaN in differences."""
PER_ROW = ["slots", "lengths", "first_query", "query_count"]
"""One number a row: where such a tensor begins may hang on how many rows there are, and must not have a kernel compiled
anew while somebody waits."""
MERGED_HEADS = 4
"""Heads that one program merges, a warp for each."""


@triton.jit
def attend_tile(query, k, v, visible, scale, best, total, summed):  # type: ignore[no-untyped-def]
    """One step of the running softmax (Milakov and Gimelshein, 2018), in powers of two, which the GPU has as one
    instruction: largest score, sum of weights and weighted values so far, all relative to that largest score."""
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(visible, scores, EMPTY)
    largest = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - largest[:, None])
    shrink = tl.exp2(best - largest)
    summed = tl.dot(weights.to(v.dtype), v, summed * shrink[:, None], input_precision="ieee")
    return largest, total * shrink + tl.sum(weights, 1), summed


@triton.jit
def queries_of(row, first_query, query_count, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first of a row's queries and how many they are: one, the row's own, in a decode."""
    if QUERIES == 1:
        return row, row * 0 + 1
    return tl.load(first_query + row).to(tl.int64), tl.load(query_count + row).to(tl.int64)


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=PER_ROW)
def attend_kernel(
    q: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    block_tables: tl.tensor,
    slots: tl.tensor,
    lengths: tl.tensor,
    first_query: tl.tensor,
    query_count: tl.tensor,
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
    QUERIES: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program an item and KV head. A row of a single item is finished here, others leave partial results.

    A row's length is what its last query may see; each one before it sees one less.
    """
    wait_for_inputs(OVERLAPS)
    item, kv_head = tl.program_id(0), tl.program_id(1)
    assigned = tl.load(item_row + item)
    row = tl.maximum(assigned, 0).to(tl.int64)
    length = tl.where(assigned >= 0, tl.load(lengths + row), 0)
    first, count = queries_of(row, first_query, query_count, QUERIES)
    per_item = tl.load(tiles_per_item)
    tiles = tl.cdiv(length, TILE)
    start = tl.load(item_start + item, mask=assigned >= 0, other=0)
    stop = tl.minimum(start + per_item, tiles)
    table = block_tables + tl.load(slots + row) * table_stride

    member = tl.arange(0, QUERIES * GROUP_PAD)
    nth, member = member // GROUP_PAD, member % GROUP_PAD
    head = kv_head * GROUP + member
    real = (member < GROUP) & (nth < count)
    lane = tl.arange(0, HEAD_DIM)
    query_at = ((first + nth) * q_stride + head * HEAD_DIM)[:, None] + lane[None, :]
    query = tl.load(q + query_at, mask=real[:, None], other=0.0)
    seen = length - count + 1 + nth
    best = tl.full([QUERIES * GROUP_PAD], EMPTY, tl.float32)
    total = tl.zeros([QUERIES * GROUP_PAD], tl.float32)
    summed = tl.zeros([QUERIES * GROUP_PAD, HEAD_DIM], tl.float32)
    # Each block's number is there one turn before it is needed: the loads of KV can then run several tiles ahead.
    block = tl.load(table + start * TILE // BLOCK_SIZE)
    for tile in range(start, stop):
        next_block = tl.load(table + tl.minimum(tile + 1, stop - 1) * TILE // BLOCK_SIZE)
        position = tile * TILE + tl.arange(0, TILE)
        inside = (position < length)[:, None]
        places = block.to(tl.int64) * BLOCK_SIZE + tile * TILE % BLOCK_SIZE + tl.arange(0, TILE)
        at = (places[:, None] * KV_HEADS + kv_head) * HEAD_DIM + lane[None, :]
        # The mask also keeps a stranger's NaN behind the sequence's end out of the sums.
        k = tl.load(k_cache + at, mask=inside, other=0.0)
        v = tl.load(v_cache + at, mask=inside, other=0.0)
        visible = position[None, :] < seen[:, None]
        best, total, summed = attend_tile(query, k, v, visible, scale, best, total, summed)
        block = next_block

    total = tl.maximum(total, 1e-30)
    result = summed / total[:, None]
    alone = real & (assigned >= 0) & (tiles <= per_item)
    shared = real & (assigned >= 0) & (tiles > per_item)
    out_at = (((first + nth) * KV_HEADS * GROUP + head) * HEAD_DIM)[:, None] + lane[None, :]
    tl.store(out + out_at, result.to(out.dtype.element_ty), mask=alone[:, None])
    slot = (item * QUERIES + nth) * KV_HEADS * GROUP + head
    tl.store(partial + slot[:, None] * HEAD_DIM + lane[None, :], result, mask=shared[:, None])
    # A query that sees nothing of this item leaves a share that counts for nothing.
    tl.store(partial_lse + slot, best + tl.log2(total), mask=shared)


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def merge_kernel(
    partial: tl.tensor,
    partial_lse: tl.tensor,
    first_item: tl.tensor,
    first_query: tl.tensor,
    query_count: tl.tensor,
    out: tl.tensor,
    OVERLAPS: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ITEMS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
) -> None:
    """One program a row and some heads of its queries: the partial results weighted by their shares of the softmax's
    denominator.

    Several heads, since in a large batch no row is divided, and thousands of programs would come to find nothing to do.
    """
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    query, count = queries_of(row, first_query, query_count, QUERIES)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    real = head < count * HEADS
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
        slot = item[:, None] * (QUERIES * HEADS) + head[None, :]
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
    at = (query * HEADS + head)[:, None] * HEAD_DIM + lane[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None] & (first < last))


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of an attention. Row r reads the KV blocks from block_tables[slots[r], 0] on, and has `query_count[r]`
    queries from `first_query[r]` on, at most `queries`; None of both: one each."""

    block_tables: torch.Tensor  # int32 [S, W], or [N] with slots that are places in it
    slots: torch.Tensor  # int64 [rows]
    lengths: torch.Tensor  # int32 [rows]: KV positions that the row's last query sees
    queries: int = 1
    first_query: torch.Tensor | None = None  # int64 [rows]
    query_count: torch.Tensor | None = None  # int32 [rows]

    @property
    def queries_of_each(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as a kernel takes them, which reads neither where each row has one query."""
        return (
            self.lengths if self.first_query is None else self.first_query,
            self.lengths if self.query_count is None else self.query_count,
        )


def attend(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    rows: PagedRows,
    work: WorkPlan,
    scale: float,
    tuning: AttentionTuning,
    *,
    overlaps: bool = False,
) -> torch.Tensor:
    """softmax(q k^T * scale) v for q [T, heads, head_dim], which may be a view of the fused projection: [T, heads,
    head_dim]. The caches are contiguous; head_dim, block size and tile are powers of two of at least 16."""
    heads, head_dim = q.shape[1:]
    items, launch = work.item_row.shape[0], launch_options(overlaps)
    partial = torch.empty(items, rows.queries, heads, head_dim, dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(items, rows.queries, heads, dtype=torch.float32, device=q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    _attend_items(q, k_cache, v_cache, rows, work, scale, tuning, (partial, partial_lse, out), launch)
    _merge_items(rows, work, (partial, partial_lse, out), launch)
    return out


Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Partial results [items, queries, heads, head_dim] and the logarithms, to base 2, of their shares of the softmax's
denominator [items, queries, heads], in fp32; and the result [T, heads, head_dim]."""


def _attend_items(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    rows: PagedRows,
    work: WorkPlan,
    scale: float,
    tuning: AttentionTuning,
    results: Results,
    launch: dict[str, bool],
) -> None:
    heads, head_dim = q.shape[1:]
    block_size, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    attend_kernel[(work.item_row.shape[0], kv_heads)](
        q,
        k_cache,
        v_cache,
        rows.block_tables,
        rows.slots,
        rows.lengths,
        *rows.queries_of_each,
        work.item_row,
        work.item_start,
        work.tiles_per_item,
        *results,
        scale * LOG2_E,
        q.stride(0),
        rows.block_tables.stride(0),
        QUERIES=rows.queries,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PAD=max(MIN_DOT, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=tile_for(tuning, k_cache),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        **launch,
    )


def _merge_items(rows: PagedRows, work: WorkPlan, results: Results, launch: dict[str, bool]) -> None:
    partial, partial_lse, out = results
    heads, head_dim = out.shape[1:]
    merge_kernel[(rows.lengths.shape[0], triton.cdiv(rows.queries * heads, MERGED_HEADS))](
        partial,
        partial_lse,
        work.first_item,
        *rows.queries_of_each,
        out,
        QUERIES=rows.queries,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_ITEMS=16,
        BLOCK_HEADS=MERGED_HEADS,
        num_warps=MERGED_HEADS,
        **launch,
    )
