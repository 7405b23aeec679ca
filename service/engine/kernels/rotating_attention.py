"""Decode attention that rotates its queries and keys itself, and keeps the new ones: a launch a layer less than behind
`rope`, and nothing of the projection is written back and read again.

The new token's key and value need not be in the cache to be seen. Whoever computes the end of a row adds them to its
running softmax from registers, and writes them for the steps to come; nobody else reads that place.
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.attention_plan import WorkPlan, item_at, tile_for
from service.engine.kernels.ops import Angles, Caches, Heads
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.paged_attention import LOG2_E, MIN_DOT, weigh_tile
from service.engine.kernels.paged_rows import PER_ROW, PagedRows
from service.engine.kernels.partial_results import EMPTY, leave_item, merge_items, room_for_results
from service.engine.kernels.rope import turn
from service.engine.kernels.tuning import AttentionTuning


@triton.jit
def add_newest(scores, v, best, total, summed, is_last):  # type: ignore[no-untyped-def]
    """The running softmax with one more token, whose scores and value these are, if it `is_last`."""
    scores = tl.where(is_last, scores, EMPTY)
    largest = tl.maximum(best, scores)
    weights = tl.where(is_last, tl.exp2(scores - largest), 0.0)
    shrink = tl.exp2(best - largest)
    summed = summed * shrink[:, None] + weights[:, None] * v.to(tl.float32)[None, :]
    return largest, total * shrink + weights, summed


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=PER_ROW)
def attend_rotating_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
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
    row_stride: int,
    angle_stride: int,
    table_stride: int,
    OVERLAPS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """One program an item and KV head, as of `paged_attention.attend_kernel` with a query a row."""
    wait_for_inputs(OVERLAPS)
    HEAD_DIM: tl.constexpr = 2 * HALF
    item, kv_head = tl.program_id(0), tl.program_id(1)
    exists, row, length, start, stop, ends, is_whole = item_at(
        item, item_row, item_start, tiles_per_item, lengths, TILE
    )
    last = tl.maximum(length - 1, 0)
    table = block_tables + tl.load(slots + row) * table_stride

    half, lane = tl.arange(0, HALF), tl.arange(0, HEAD_DIM)
    c = tl.load(cos + last * angle_stride + half).to(tl.float32)
    s = tl.load(sin + last * angle_stride + half).to(tl.float32)
    member = tl.arange(0, GROUP_PAD)
    head = kv_head * GROUP + member
    real = (member < GROUP) & exists
    query = q + row * row_stride + head[:, None] * HEAD_DIM + half[None, :]
    first = tl.load(query, mask=real[:, None], other=0.0)
    second = tl.load(query + HALF, mask=real[:, None], other=0.0)
    first, second = turn(first, second, c[None, :], s[None, :])

    # The newest token's are needed last, and there by then.
    is_last = ends & (length > 0)
    newest = row * row_stride + kv_head * HEAD_DIM
    new_first = tl.load(k + newest + half, mask=is_last, other=0.0)
    new_second = tl.load(k + newest + HALF + half, mask=is_last, other=0.0)
    new_value = tl.load(v + newest + lane, mask=is_last, other=0.0)
    last_block = tl.load(table + last // BLOCK_SIZE).to(tl.int64)

    best = tl.full([GROUP_PAD], EMPTY, tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    summed = tl.zeros([GROUP_PAD, HEAD_DIM], tl.float32)
    # Each block's number is there one turn before it is needed: the loads of KV can then run several tiles ahead.
    block = tl.load(table + start * TILE // BLOCK_SIZE)
    for tile in range(start, stop):
        next_block = tl.load(table + tl.minimum(tile + 1, stop - 1) * TILE // BLOCK_SIZE)
        position = tile * TILE + tl.arange(0, TILE)
        inside = position < last
        places = block.to(tl.int64) * BLOCK_SIZE + tile * TILE % BLOCK_SIZE + tl.arange(0, TILE)
        at = ((places * KV_HEADS + kv_head) * HEAD_DIM)[:, None]
        # The mask also keeps a stranger's NaN behind the sequence's end out of the sums.
        k_first = tl.load(k_cache + at + half[None, :], mask=inside[:, None], other=0.0)
        k_second = tl.load(k_cache + at + HALF + half[None, :], mask=inside[:, None], other=0.0)
        values = tl.load(v_cache + at + lane[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(first, tl.trans(k_first), input_precision="ieee")
        scores = tl.dot(second, tl.trans(k_second), scores, input_precision="ieee") * scale
        scores = tl.where(inside[None, :], scores, EMPTY)
        best, total, summed = weigh_tile(scores, values, best, total, summed)
        block = next_block

    new_first, new_second = turn(new_first, new_second, c, s)
    scores = tl.sum(first.to(tl.float32) * new_first.to(tl.float32)[None, :], 1)
    scores += tl.sum(second.to(tl.float32) * new_second.to(tl.float32)[None, :], 1)
    best, total, summed = add_newest(scores * scale, new_value, best, total, summed, is_last)
    place = last_block * BLOCK_SIZE + last % BLOCK_SIZE
    kept = (place * KV_HEADS + kv_head) * HEAD_DIM
    tl.store(k_cache + kept + half, new_first, mask=is_last)
    tl.store(k_cache + kept + HALF + half, new_second, mask=is_last)
    tl.store(v_cache + kept + lane, new_value, mask=is_last)

    out_at = (row * KV_HEADS * GROUP + head) * HEAD_DIM
    slot = item * KV_HEADS * GROUP + head
    leave_item(best, total, summed, out, partial, partial_lse, out_at, slot, lane, real, is_whole, HEAD_DIM)


def attend_rotating(
    heads: Heads,
    angles: Angles,
    caches: Caches,
    rows: PagedRows,
    work: WorkPlan,
    scale: float,
    tuning: AttentionTuning,
    *,
    overlaps: bool = False,
) -> torch.Tensor:
    """See `ops.RotatingAttention`; the caches are contiguous, sizes as for `paged_attention.attend`, but
    that head_dim is at least 32: its halves are multiplied apart."""
    q, k, v = heads
    assert q.stride(0) == k.stride(0) == v.stride(0), "views of one projection"
    block_size, kv_heads, head_dim = caches[0].shape[1:]
    group = q.shape[1] // kv_heads
    results, launch = room_for_results(q, rows, work), launch_options(overlaps)
    attend_rotating_kernel[(work.item_row.shape[0], kv_heads)](
        *heads,
        *angles,
        *caches,
        rows.block_tables,
        rows.slots,
        rows.lengths,
        work.item_row,
        work.item_start,
        work.tiles_per_item,
        *results,
        scale * LOG2_E,
        q.stride(0),
        angles[0].stride(0),
        rows.block_tables.stride(0),
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PAD=max(MIN_DOT, triton.next_power_of_2(group)),
        HALF=head_dim // 2,
        BLOCK_SIZE=block_size,
        TILE=tile_for(tuning, caches[0]),
        num_warps=tuning.warps,
        num_stages=tuning.stages,
        **launch,
    )
    merge_items(rows, work, results, launch)
    return results[2]
