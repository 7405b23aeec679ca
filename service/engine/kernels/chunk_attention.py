"""Attention of short chunks of prompts over long contexts, divided over the whole GPU.

Flash attention divides by heads and by 128 queries: a chunk of up to 128 tokens keeps 32 programs busy, a quarter of an
H100, each of which reads all of a context of 30,000 tokens on its own. By arithmetic running streams would wait half a
millisecond a layer for that, with every chunk. Here successive queries form rows, whose contexts are divided as a
decode's are.
"""

import torch

from service.engine.attention import Attention, ChunkSpan, PagedCache
from service.engine.device import upload
from service.engine.kernels.attention_plan import plan_work
from service.engine.kernels.paged_attention import PagedRows, attend, tile_for
from service.engine.kernels.tuning import AttentionTuning

QUERIES = 8
"""Most queries of a row: with a group of 16 heads they fill a tensor-core tile of 128."""


class PagedChunkAttention:
    """`paths.PrefillFactory`: the attention of one step's chunks, whose KV, new and old, is read from the cache."""

    def __init__(self, tuning: AttentionTuning, multiprocessors: int, *, overlaps: bool = False) -> None:
        self._tuning = tuning
        self._programs = tuning.programs_per_multiprocessor * multiprocessors
        self._overlaps = overlaps

    def __call__(self, cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan]) -> Attention:
        rows = paged_rows(spans, places.device)
        k_cache = cache.keys[0]
        spare = max(1, self._programs // k_cache.shape[2])
        work = plan_work(rows.lengths, tile_for(self._tuning, k_cache), spare, overlaps=self._overlaps)
        return _ChunkAttention(self, cache, places, rows, work)


class _ChunkAttention:
    def __init__(
        self,
        owner: PagedChunkAttention,
        cache: PagedCache,
        places: torch.Tensor,
        rows: PagedRows,
        work: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        self.cache = cache
        self.places = places
        self._tuning, self._overlaps = owner._tuning, owner._overlaps
        self._rows, self._work = rows, work

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values, scale = self.cache.keys[layer], self.cache.values[layer], q.shape[-1] ** -0.5
        return attend(q, keys, values, self._rows, self._work, scale, self._tuning, overlaps=self._overlaps)


def paged_rows(spans: list[ChunkSpan], device: torch.device) -> PagedRows:
    """The chunks' tokens in rows of up to QUERIES; a row's blocks begin where its chunk's do, all laid side by side."""
    begins, firsts, lengths, counts, block = [], [], [], [], 0
    for span in spans:
        for first in range(span.first, span.last, QUERIES):
            last = min(first + QUERIES, span.last)
            begins.append(block)
            firsts.append(first)
            lengths.append(span.start + last - span.first)
            counts.append(last - first)
        block += span.blocks.shape[0]
    long = upload([*begins, *firsts], torch.int64, device).view(2, -1)
    short = upload([*lengths, *counts], torch.int32, device).view(2, -1)
    blocks = torch.cat([span.blocks for span in spans])
    return PagedRows(blocks, long[0], short[0], QUERIES, long[1], short[1])
