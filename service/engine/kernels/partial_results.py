"""What the items of an attention leave where several share a row, and how that becomes the row's result."""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.attention_plan import WorkPlan
from service.engine.kernels.overlap import wait_for_inputs
from service.engine.kernels.paged_rows import PER_ROW, PagedRows, queries_of

EMPTY = tl.constexpr(-1.0e30)
"""Stands for minus infinity, without its NaN in differences."""
WARPS = 4
MERGED_HEADS, MERGED_ITEMS = 4, 16
"""Heads that one program merges, a warp for each, and items that it reads at a time."""
FEW_ROWS, ITEMS_OF_FEW = 8, 64
"""Most rows of a decode of whose heads each has a program of its own, which reads more items at a time: what takes long
of few rows is one turn after the other, of many that thousands of programs come to find nothing to merge."""
Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Partial results [items, queries, heads, head_dim] and the logarithms, to base 2, of their shares of the softmax's
denominator [items, queries, heads], in fp32; and the result [T, heads, head_dim]."""


def room_for_results(q: torch.Tensor, rows: PagedRows, work: WorkPlan) -> Results:
    """For q [T, heads, head_dim]."""
    items, (heads, head_dim) = work.item_row.shape[0], q.shape[1:]
    partial = torch.empty(items, rows.queries, heads, head_dim, dtype=torch.float32, device=q.device)
    partial_lse = torch.empty(items, rows.queries, heads, dtype=torch.float32, device=q.device)
    return partial, partial_lse, torch.empty(q.shape, dtype=q.dtype, device=q.device)


@triton.jit
def leave_item(  # type: ignore[no-untyped-def]
    best, total, summed, out, partial, partial_lse, out_at, slot, lane, real, is_whole, HEAD_DIM: tl.constexpr
):
    """Stores an item's result: at `out_at` if it is its row's only one, else its share, for the merge."""
    total = tl.maximum(total, 1e-30)
    result = summed / total[:, None]
    alone, shared = real & is_whole, real & (is_whole == 0)
    tl.store(out + out_at[:, None] + lane[None, :], result.to(out.dtype.element_ty), mask=alone[:, None])
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
    # A row of one item was finished by whoever computed that.
    first = tl.where(last - first > 1, first, last)
    for start in range(first, last, BLOCK_ITEMS):
        item = start + tl.arange(0, BLOCK_ITEMS)
        there = (item < last)[:, None] & real[None, :]
        slot = item[:, None] * (QUERIES * HEADS) + head[None, :]
        lse = tl.load(partial_lse + slot, mask=there, other=EMPTY)
        at = slot[:, :, None] * HEAD_DIM + lane[None, None, :]
        # Before the maximum, behind whose barriers they would come one after the other, as they are added.
        parts = tl.load(partial + at, mask=there[:, :, None], other=0.0)
        largest = tl.maximum(best, tl.max(lse, 0))
        weights = tl.where(there, tl.exp2(lse - largest[None, :]), 0.0)
        shrink = tl.exp2(best - largest)
        summed = summed * shrink[:, None] + tl.sum(parts * weights[:, :, None], 0)
        total = total * shrink + tl.sum(weights, 0)
        best = largest
    result = summed / tl.maximum(total, 1e-30)[:, None]
    at = (query * HEADS + head)[:, None] * HEAD_DIM + lane[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None] & (first < last))


def merge_items(rows: PagedRows, work: WorkPlan, results: Results, launch: dict[str, bool]) -> None:
    """The results of rows that several items share."""
    partial, partial_lse, out = results
    heads, head_dim = out.shape[1:]
    count = rows.lengths.shape[0]
    is_few = rows.queries == 1 and count <= FEW_ROWS
    merged, items = (1, ITEMS_OF_FEW) if is_few else (MERGED_HEADS, MERGED_ITEMS)
    merge_kernel[(count, triton.cdiv(rows.queries * heads, merged))](
        partial,
        partial_lse,
        work.first_item,
        *rows.queries_of_each,
        out,
        QUERIES=rows.queries,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_ITEMS=items,
        BLOCK_HEADS=merged,
        num_warps=WARPS,
        **launch,
    )
