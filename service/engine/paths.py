"""Which implementation computes what on this device: the operations, prefill attention, decode attention."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from service.engine.attention import Attention, ChunkSpan, DecodeAttention, PagedCache, PrefillAttention
from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.ops import Ops
from service.engine.planned_decode import PlannedDecodeAttention
from service.engine.slots import Slots

PrefillFactory = Callable[[PagedCache, torch.Tensor, list[ChunkSpan]], Attention]
"""Attention of prompt chunks from the cache, the new tokens' places [T] and one span per chunk."""


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
        inputs = self.ops.locate(slots, numbers, cache.block_size)
        if self.plans_decode:
            return inputs, PlannedDecodeAttention(cache, self.ops, slots, numbers, inputs)
        return inputs, DecodeAttention(cache, slots.tables[numbers, :width], inputs.positions)

    def padded(self, count: int) -> int:
        """The smallest bucket for `count` rows; `count` itself when none is large enough."""
        return next((bucket for bucket in self.buckets if bucket >= count), count)
