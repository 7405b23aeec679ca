"""Attention of short chunks of prompts over long contexts, divided over the whole GPU.

Flash attention divides by heads and by 128 queries: a chunk of up to 128 tokens keeps 32 programs busy, a quarter of an
H100, each of which reads all of a context of 30,000 tokens on its own. By arithmetic running streams would wait half a
millisecond a layer for that, with every chunk. Here successive queries form rows, whose contexts are divided as a
decode's are. And of many chunks of a few tokens each, 128 queries at a time are padding for the most part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from service.engine.attention import Attention, ChunkSpan, PagedCache
from service.engine.device import upload
from service.engine.kernels.attention_plan import WorkPlan, plan_work
from service.engine.kernels.batch import CHUNK_QUERIES
from service.engine.kernels.paged_attention import attend
from service.engine.kernels.paged_rows import PagedRows
from service.engine.kernels.tuning import AttentionTuning


class PagedChunkAttention:
    """`attention.PrefillFactory`: the attention of one step's chunks, whose KV, new and old, is read from the cache."""

    def __init__(self, tuning: AttentionTuning, multiprocessors: int, *, overlaps: bool = False) -> None:
        self._tuning = tuning
        self._multiprocessors = multiprocessors
        self._overlaps = overlaps

    def __call__(self, cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan]) -> Attention:
        rows = paged_rows(spans, places.device)
        # 128 queries fill a multiprocessor's registers: a program has one to itself.
        work = plan_work(
            rows.lengths,
            cache.keys[0],
            self._tuning,
            self._multiprocessors,
            in_one_round=True,
            overlaps=self._overlaps,
        )
        return _ChunkAttention(cache, places, partial(self._attend, rows, work))

    def _attend(
        self, rows: PagedRows, work: WorkPlan, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor
    ) -> torch.Tensor:
        scale = q.shape[-1] ** -0.5
        return attend(q, k_cache, v_cache, rows, work, scale, self._tuning, overlaps=self._overlaps)


@dataclass(slots=True)
class _ChunkAttention:
    """`attend` takes q and one layer's caches, which hold the new keys and values already."""

    cache: PagedCache
    places: torch.Tensor
    attend: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.attend(q, self.cache.keys[layer], self.cache.values[layer])


def paged_rows(spans: list[ChunkSpan], device: torch.device) -> PagedRows:
    """The chunks' tokens in rows of up to CHUNK_QUERIES; a row's blocks begin where its chunk's do, side by side."""
    begins, firsts, lengths, counts, block = [], [], [], [], 0
    for span in spans:
        for first in range(span.first, span.last, CHUNK_QUERIES):
            last = min(first + CHUNK_QUERIES, span.last)
            begins.append(block)
            firsts.append(first)
            lengths.append(span.start + last - span.first)
            counts.append(last - first)
        block += span.blocks.shape[0]
    long = upload([*begins, *firsts], torch.int64, device).view(2, -1)
    short = upload([*lengths, *counts], torch.int32, device).view(2, -1)
    blocks = torch.cat([span.blocks for span in spans])
    return PagedRows(blocks, long[0], short[0], CHUNK_QUERIES, long[1], short[1])
