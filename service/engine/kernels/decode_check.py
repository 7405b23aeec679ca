"""Decode attention against torch in fp32. Caches hold NaN wherever no sequence of the batch has written, so that a
stray read shows."""

from collections.abc import Sequence

import torch

from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.candidate import ServedShapes, require_close
from service.engine.kernels.ops import Ops

LONG = 6000
"""Tokens of one sequence: pieces enough for several turns of any loop that merges them."""


def check_decode_attention(ops: Ops, shapes: ServedShapes) -> None:
    """One long sequence, several of very unequal lengths, and a batch of many short ones."""
    size = shapes.block_size
    unequal = [1, 17, size, size + 1, 2 * size - 1, 1500, 1, 300, 2, 900]
    for lengths in ([LONG], unequal, [1 + 5 * row % (2 * size + 1) for row in range(33)]):
        keep_in_model = [min(n, shapes.config.max_positions) for n in lengths]
        q, k_cache, v_cache, batch = decode_problem(shapes, keep_in_model)
        planned = ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, k_cache)
        scale = shapes.config.head_dim**-0.5
        result = ops.decode_attention(q, k_cache, v_cache, planned, scale)
        expected = torch_ops.decode_attention(q.float(), k_cache.float(), v_cache.float(), batch, scale)
        require_close("decode_attention", result, expected, shapes.dtype)


def decode_problem(
    shapes: ServedShapes, lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecodeBatch]:
    """q (a view of a fused projection), both caches and the batch of sequences of `lengths` in shuffled blocks."""
    c, size = shapes.config, shapes.block_size
    rows, width = len(lengths), -(-max(lengths) // size)
    order = torch.randperm(rows * width, generator=torch.Generator().manual_seed(0)).view(rows, width) + 1
    slots = torch.arange(rows - 1, -1, -1)
    tables = torch.zeros(rows + 1, width, dtype=torch.int32)
    cache = torch.full((2, rows * width + 1, size, c.num_kv_heads, c.head_dim), torch.nan)
    cache = cache.to(shapes.device, shapes.dtype)
    for row, length in enumerate(lengths):
        used = -(-length // size)
        tables[slots[row], :used] = order[row, :used].int()
        held = shapes.random(2, length, c.num_kv_heads, c.head_dim)
        places = (order[row, :used, None] * size + torch.arange(size)).flatten()[:length].to(shapes.device)
        cache.flatten(1, 2).index_copy_(1, places, held)
    fused = shapes.random(rows, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
    batch = DecodeBatch(tables.to(shapes.device), slots.to(shapes.device), shapes.whole(lengths, torch.int32))
    return fused[:, : c.num_heads], cache[0], cache[1], batch
