"""Which implementation computes what on this device: the operations, prefill attention, decode attention."""

from dataclasses import dataclass, field

import torch

from service.engine.attention import (
    Attention,
    ChunkSpan,
    DecodeAttention,
    PagedCache,
    PrefillAttention,
    PrefillFactory,
)
from service.engine.cuda.planned_decode import PlannedDecodeAttention
from service.engine.kernels.batch import CHUNK_QUERIES, USUAL_ROWS, DecodeInputs
from service.engine.kernels.ops import Ops
from service.engine.model import RotatingAttention
from service.engine.steps.slots import Slots

FLASH_QUERIES = 128
"""Queries of one program of the flash kernel (FlashAttention-2's tile for heads of 128 on data-centre GPUs)."""
LONG_CONTEXT = 1024
"""Below it a few programs are done before it pays to divide the work."""
WORTH_OF_WIDE = 3
"""How much faster than ours torch's kernel computes what is no padding, at most: an estimate."""


@dataclass(frozen=True, slots=True)
class PrefillBySize:
    """Uses `narrow`, whose tiles take few queries, for long contexts when `wide`, whose tiles take many queries of one
    of `heads`, would leave multiprocessors idle or compute mostly padding; otherwise `wide`."""

    wide: PrefillFactory
    narrow: PrefillFactory
    heads: int
    multiprocessors: int

    def __call__(self, cache: PagedCache, places: torch.Tensor, spans: list[ChunkSpan]) -> Attention:
        return (self.narrow if self._is_narrow(spans) else self.wide)(cache, places, spans)

    def _is_narrow(self, spans: list[ChunkSpan]) -> bool:
        if max(span.end for span in spans) < LONG_CONTEXT or _tiles(spans, CHUNK_QUERIES) > USUAL_ROWS:
            return False
        leaves_gpu_idle = self.heads * _tiles(spans, FLASH_QUERIES) < self.multiprocessors
        return leaves_gpu_idle or WORTH_OF_WIDE * _scores(spans, CHUNK_QUERIES) <= _scores(spans, FLASH_QUERIES)


def _tiles(spans: list[ChunkSpan], queries: int) -> int:
    """Tiles of so many queries that the chunks take."""
    return sum(-(-(span.last - span.first) // queries) for span in spans)


def _scores(spans: list[ChunkSpan], queries: int) -> int:
    """Queries times keys that such tiles compute, padding included."""
    return sum(_tiles([span], queries) * queries * span.end for span in spans)


@dataclass(frozen=True, slots=True)
class Paths:
    """What a runner computes with. The default is torch alone: right on every device, the fastest on a CPU.

    `plans_decode`: decode attention is that of `ops`, whose work does not depend on a width the host must know, so
    that a CUDA graph can hold it. `buckets`: batch sizes that decodes are padded to; none: no padding.
    """

    ops: Ops = field(default_factory=Ops)
    prefill: PrefillFactory = PrefillAttention
    plans_decode: bool = False
    buckets: tuple[int, ...] = ()

    def decode(
        self, cache: PagedCache, slots: Slots, numbers: torch.Tensor, width: int
    ) -> tuple[DecodeInputs, Attention]:
        """Inputs and attention of a decode of the slots of these `numbers`; `width` blocks hold the longest one."""
        if self.plans_decode:
            return self._planned(cache, slots, numbers)
        inputs = self.ops.locate(slots, numbers, cache.block_size)
        return inputs, DecodeAttention(cache, slots.tables[numbers, :width], inputs.positions)

    @property
    def rotates(self) -> bool:
        """Whether the attention of a step of decodes alone rotates them itself."""
        return self.plans_decode and self.ops.rotating_attention is not None

    def rotating(
        self, cache: PagedCache, slots: Slots, numbers: torch.Tensor
    ) -> tuple[torch.Tensor, RotatingAttention]:
        """The last tokens of the slots of these `numbers`, and their attention, where that `rotates`."""
        inputs, attention = self._planned(cache, slots, numbers)
        return inputs.tokens, attention.rotating

    def _planned(
        self, cache: PagedCache, slots: Slots, numbers: torch.Tensor
    ) -> tuple[DecodeInputs, PlannedDecodeAttention]:
        inputs = self.ops.locate(slots, numbers, cache.block_size)
        return inputs, PlannedDecodeAttention(cache, self.ops, slots, numbers, inputs)

    def padded(self, count: int) -> int:
        """The smallest bucket for `count` rows; `count` itself when none is large enough."""
        return next((bucket for bucket in self.buckets if bucket >= count), count)
