"""The paged KV cache's tensors and attention over them in plain torch: right on every device, fast on a CPU.

A sequence's position p lies in block `table[p // block_size]` at offset `p % block_size`. Block 0 belongs to nobody.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from service.engine.config import ModelConfig
from service.engine.kv_cache import SCRATCH_BLOCK


class PagedCache:
    """Keys and values: `keys[layer]` and `values[layer]` are [num_blocks, block_size, kv_heads, head_dim]."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.device = device
        shape = (config.num_layers, 2, num_blocks, block_size, config.num_kv_heads, config.head_dim)
        # Not zeroed: a CPU's pages are then taken only when a block is used; `clear` sees to what is read.
        self._data = torch.empty(shape, dtype=dtype, device=device)
        self.clear(torch.tensor([SCRATCH_BLOCK], device=device))
        self.keys = [layer[0] for layer in self._data]
        self.values = [layer[1] for layer in self._data]

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero `blocks` [N]. A batch reads a block beyond its sequence's end and masks the scores; what lies there
        must be finite, since neither a score nor a weight of zero takes a stranger's NaN away."""
        self._data.index_fill_(2, blocks, 0)


class Attention(Protocol):
    """Attention of one step's tokens over what each may see; token t's KV belongs at `places[t]` of `cache`.

    A place is block * block_size + offset; the model writes there before it asks for attention.
    """

    cache: PagedCache
    places: torch.Tensor  # int64 [T]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim] and the new k, v [T, kv_heads, head_dim] -> [T, heads, head_dim]."""
        ...


class MixedAttention:
    """One new token per running sequence in the first rows, prompt chunks in the others: one pass over the weights for
    both, which a decode is bound by."""

    def __init__(self, decode: Attention, prefill: Attention) -> None:
        self.cache = decode.cache
        self.places = torch.cat((decode.places, prefill.places))
        self._rows = decode.places.shape[0]
        self._decode, self._prefill = decode, prefill

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        n = self._rows
        return torch.cat((self._decode(layer, q[:n], k[:n], v[:n]), self._prefill(layer, q[n:], k[n:], v[n:])))


SCORES_AT_ONCE = 1 << 21
"""Most queries times keys on a GPU: torch's plain attention of grouped queries writes the scores of every head to
memory, several times over, a quarter of a GiB each for 32 heads."""


@dataclass(frozen=True, slots=True)
class ChunkSpan:
    """One chunk in a prefill: its tokens are rows first <= i < last of the step, its positions end at `end`."""

    first: int
    last: int
    end: int
    blocks: torch.Tensor  # int32 [ceil(end / block_size)]

    @property
    def start(self) -> int:
        return self.end - (self.last - self.first)

    def pieces(self, queries: int, block_size: int) -> Iterator["ChunkSpan"]:
        """The same rows in spans of at most so many, each of which sees no more than its sequence so far."""
        for first in range(self.first, self.last, queries):
            last = min(first + queries, self.last)
            end = self.start + last - self.first
            yield ChunkSpan(first, last, end, self.blocks[: -(-end // block_size)])


PrefillFactory = Callable[[PagedCache, torch.Tensor, list[ChunkSpan]], Attention]
"""Attention of prompt chunks from the cache, the new tokens' places [T] and one span per chunk."""


class PrefillAttention:
    """Causal attention of prompt chunks, each over its own sequence from position 0 on, cached prefix included.

    `scores_at_once`: most queries times keys of one call; None: all of a chunk, which on a CPU costs no memory.
    """

    def __init__(
        self, cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan], scores_at_once: int | None = None
    ) -> None:
        self.cache = cache
        self.places = places
        most = scores_at_once or (SCORES_AT_ONCE if places.is_cuda else None)
        pieces = (span.pieces(max(1, most // span.end), cache.block_size) for span in spans) if most else [spans]
        self._spans = list(chain.from_iterable(pieces))
        self._masks = [_causal_mask(span, places.device) for span in self._spans]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        for span, mask in zip(self._spans, self._masks, strict=True):
            rows = slice(span.first, span.last)
            keys, values = (k[rows], v[rows]) if mask is None else self._context(layer, span)
            attended = scaled_dot_product_attention(
                q[rows].transpose(0, 1)[None],
                keys.transpose(0, 1)[None],
                values.transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            out[rows] = attended[0].transpose(0, 1)
        return out

    def _context(self, layer: int, span: ChunkSpan) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return keys[span.blocks].flatten(0, 1)[: span.end], values[span.blocks].flatten(0, 1)[: span.end]


def _causal_mask(span: ChunkSpan, device: torch.device) -> torch.Tensor | None:
    """[queries, keys], true where a query may look; None for a chunk that starts its sequence: plain causal."""
    if span.start == 0:
        return None
    queries = torch.arange(span.start, span.end, device=device)
    return torch.arange(span.end, device=device) <= queries[:, None]


class DecodeAttention:
    """Attention of one new token per row over that row's blocks.

    `tables` int32 [B, W] are the rows' block tables, wide enough for the longest; `positions` [B] are the new tokens'.
    All rows go through one kernel call: their keys are gathered side by side and the shorter rows' rests are masked.
    """

    def __init__(self, cache: PagedCache, tables: torch.Tensor, positions: torch.Tensor) -> None:
        self.cache = cache
        size = cache.block_size
        block = positions // size
        self.places = tables.gather(1, block[:, None]).squeeze(1).long() * size + positions % size
        columns = torch.arange(tables.shape[1], device=tables.device)
        self._blocks = torch.where(columns <= block[:, None], tables, SCRATCH_BLOCK).flatten()
        keys = torch.arange(tables.shape[1] * size, device=tables.device)
        self._mask = (keys <= positions[:, None])[:, None, None]  # [B, 1, 1, W * block_size]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows, heads, head_dim = q.shape
        # Query heads that share a key head become that head's queries, so that no key is copied for each of them.
        grouped = q.reshape(rows, k.shape[1], -1, head_dim)
        attended = scaled_dot_product_attention(
            grouped,
            self._gather(self.cache.keys[layer]),
            self._gather(self.cache.values[layer]),
            attn_mask=self._mask,
        )
        return attended.reshape(rows, heads, head_dim)

    def _gather(self, cached: torch.Tensor) -> torch.Tensor:
        """[B, kv_heads, W * block_size, head_dim]"""
        picked = cached.index_select(0, self._blocks)
        return picked.view(self._mask.shape[0], -1, *cached.shape[2:]).transpose(1, 2)
