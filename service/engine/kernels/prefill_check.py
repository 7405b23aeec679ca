"""What an attention of prompts is held against: chunks of random sequences through it and through plain attention."""

from dataclasses import replace

import torch

from service.engine.attention import ChunkSpan, PagedCache, PrefillAttention, PrefillFactory
from service.engine.kernels.candidate import ServedShapes, require_close
from service.engine.kernels.decode_check import LONG


def check_prefill(name: str, factory: PrefillFactory, shapes: ServedShapes) -> None:
    """Prompts from their beginning alone; beside one that continues a cached prefix; and after a long one. Raises
    Disagreement."""
    size = shapes.block_size
    begun = [(0, 3), (0, 1), (0, size + 5)]
    continued = [(0, 7), (2 * size, 3 * size - 1), (size + 1, 2 * size + 9)]
    for bounds in (begun, continued, [(LONG - 21, LONG), (LONG - 2 * size - 8, LONG - 2 * size + 1)]):
        shift = max(0, max(end for _, end in bounds) - shapes.config.max_positions)
        kept = [(max(0, start - shift), end - shift) for start, end in bounds if end > shift]
        expected = _attended(PrefillAttention, replace(shapes, dtype=torch.float32), shapes.dtype, kept)
        require_close(name, _attended(factory, shapes, shapes.dtype, kept), expected, shapes.dtype)


def _attended(
    factory: PrefillFactory, shapes: ServedShapes, rounded: torch.dtype, bounds: list[tuple[int, int]]
) -> torch.Tensor:
    """[T, heads, head_dim] of chunks of random sequences, whose numbers are those of the type `rounded`."""
    c, size = replace(shapes.config, num_layers=1), shapes.block_size
    cache = PagedCache(c, 1 + sum(-(-end // size) for _, end in bounds), size, shapes.device, shapes.dtype)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    rows, spans, places, first, block = [], [], [], 0, 1
    for start, end in bounds:
        held = replace(shapes, dtype=rounded).random(2, end, c.num_kv_heads, c.head_dim).to(shapes.dtype)
        blocks = torch.arange(block, block + -(-end // size), device=shapes.device)
        at = (blocks[:, None] * size + torch.arange(size, device=shapes.device)).flatten()[:end]
        cache.keys[0].flatten(0, 1).index_copy_(0, at, held[0])
        cache.values[0].flatten(0, 1).index_copy_(0, at, held[1])
        spans.append(ChunkSpan(first, first + end - start, end, blocks.int()))
        rows.append(held[:, start:])
        places.append(at[start:])
        first, block = first + end - start, block + blocks.shape[0]
    q = replace(shapes, dtype=rounded).random(first, c.num_heads, c.head_dim).to(shapes.dtype)
    k, v = torch.cat(rows, dim=1)
    return factory(cache, torch.cat(places), spans)(0, q, k, v)
