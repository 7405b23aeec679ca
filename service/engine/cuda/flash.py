"""Attention by torch's flash kernel for sequences of any lengths: prefill, and decode where our own kernel can't serve.

The kernel aligns a causal mask with the sequence's end, so that a chunk's queries see all cached positions before it.
Needs Ampere or later and half precision (Dao, FlashAttention-2, 2023; torch.nn.attention.varlen).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from service.engine.attention import ChunkSpan, PagedCache
from service.engine.device import upload
from service.engine.kernels.batch import DecodeBatch

FLASH_PAGE = 256
"""The paged kernel takes KV blocks of a multiple of this."""
CAUSAL = (-1, 0)
GATHERED_TOKENS = 1 << 15
"""Most tokens whose keys and values are copied at once, but for a single longer chunk: those of the 8B model's longest
conversation, 32 MiB, which a warm-up has seen."""

Varlen = Callable[..., Any]
"""Takes what `torch.nn.attention.varlen.varlen_attn` takes."""


def flash_kernel(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    scale: float | None = None,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """`varlen_attn` by the operator beneath it: a step that mixes prompts and decodes is launched kernel by kernel, and
    48 layers of a Python-defined operator would take as long to launch as a decode takes to run."""
    # Only what is used is passed on: torch 2.11 knows no block tables, and prefill needs none.
    paged = {} if block_table is None else {"seqused_k": seqused_k, "block_table": block_table}
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        0.0,
        window_size == CAUSAL,
        False,
        scale=scale,
        window_size_left=window_size[0],
        window_size_right=window_size[1],
        **paged,
    )[0]
    return out


def flash_function(*arguments: Any, **options: Any) -> Any:
    """`varlen_attn` itself, imported by the first call: torch._dynamo comes with it, which takes as long as all else
    that an engine imports, and it serves only where the operator beneath it does not."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*arguments, **options)


class FlashPrefillAttention:
    """Causal attention of prompt chunks. Chunks that begin their sequences read the new keys where they are; as soon
    as one has a context in the cache, each layer's context is gathered, of as many chunks at once as GATHERED_TOKENS
    hold: a hundred that share a long prefix would else have a hundred copies of it."""

    def __init__(
        self, cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan], varlen: Varlen = flash_kernel
    ) -> None:
        self.cache = cache
        self.places = places
        self._varlen = varlen
        has_context = any(span.start for span in spans)
        groups = _gathered_together(spans) if has_context else [spans]
        self._calls = [_Call.of(group, cache.block_size, places.device, has_context) for group in groups]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = [self._attend(call, layer, q, k, v) for call in self._calls]
        return out[0] if len(out) == 1 else torch.cat(out)

    def _attend(self, call: "_Call", layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if call.context is not None:
            k = self.cache.keys[layer].flatten(0, 1).index_select(0, call.context)
            v = self.cache.values[layer].flatten(0, 1).index_select(0, call.context)
        bounds = (call.queries, call.keys, call.most_queries, call.most_keys)
        out: torch.Tensor = self._varlen(q[call.rows], k, v, *bounds, window_size=CAUSAL, enable_gqa=True)
        return out


@dataclass(frozen=True, slots=True)
class _Call:
    """Chunks that go through the kernel together."""

    rows: slice
    queries: torch.Tensor  # int32 [chunks + 1], where each chunk's begin among `rows`
    keys: torch.Tensor  # int32 [chunks + 1]
    most_queries: int
    most_keys: int
    context: torch.Tensor | None  # int64 [all keys]: where the cache has them; None: they are the step's own

    @classmethod
    def of(cls, spans: list[ChunkSpan], block_size: int, device: torch.device, has_context: bool) -> "_Call":
        first = spans[0].first
        ends = accumulate((span.end for span in spans), initial=0)
        return cls(
            rows=slice(first, spans[-1].last),
            queries=upload([0, *(span.last - first for span in spans)], torch.int32, device),
            keys=upload(list(ends), torch.int32, device),
            most_queries=max(span.last - span.first for span in spans),
            most_keys=max(span.end for span in spans),
            context=torch.cat([_places_of(span, block_size) for span in spans]) if has_context else None,
        )


def _gathered_together(spans: list[ChunkSpan]) -> list[list[ChunkSpan]]:
    """The chunks in order, in groups whose contexts are GATHERED_TOKENS at most; a longer one is a group of its own."""
    groups: list[list[ChunkSpan]] = [[]]
    held = 0
    for span in spans:
        if groups[-1] and held + span.end > GATHERED_TOKENS:
            groups.append([])
            held = 0
        groups[-1].append(span)
        held += span.end
    return groups


def _places_of(span: ChunkSpan, block_size: int) -> torch.Tensor:
    """int64 [end]: where the cache keeps the sequence's positions."""
    offsets = torch.arange(block_size, device=span.blocks.device)
    return (span.blocks.long()[:, None] * block_size + offsets).flatten()[: span.end]


class FlashDecode:
    """`plan_decode` and `decode_attention` of `Ops` by the paged flash kernel; blocks are multiples of FLASH_PAGE."""

    def __init__(self, max_context: int, varlen: Varlen = flash_kernel) -> None:
        self._max_context = max_context
        self._varlen = varlen

    def plan(
        self, block_tables: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, k_cache: torch.Tensor
    ) -> DecodeBatch:
        """See `ops.PlanDecode`. The work is the batch's own block tables and the bounds of its queries and of its keys.

        Pages make the keys' bounds superfluous, but the kernel refuses bounds for the queries alone.
        """
        queries = torch.arange(slots.shape[0] + 1, dtype=torch.int32, device=slots.device)
        keys = torch.zeros_like(queries)
        torch.cumsum(lengths, 0, dtype=torch.int32, out=keys[1:])
        return DecodeBatch(block_tables, slots, lengths, (block_tables[slots], queries, keys))

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        """See `ops.DecodeAttention`."""
        assert batch.work is not None
        tables, queries, keys = batch.work
        out: torch.Tensor = self._varlen(
            q,
            k_cache,
            v_cache,
            queries,
            keys,
            1,
            self._max_context,
            scale=scale,
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=tables,
        )
        return out
