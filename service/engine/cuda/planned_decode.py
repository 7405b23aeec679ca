"""Decode attention by the operations of `kernels.ops`: planned once a step, with nothing the host has to know."""

import torch

from service.engine.attention import PagedCache
from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.ops import Angles, Heads, Ops
from service.engine.steps.slots import Slots


class PlannedDecodeAttention:
    """Attention of one new token per row, for the slots of these `numbers` [B], which stand where `inputs` say.

    Reads nothing back and depends on no length, so a CUDA graph that holds it serves any lengths.
    """

    def __init__(self, cache: PagedCache, ops: Ops, slots: Slots, numbers: torch.Tensor, inputs: DecodeInputs) -> None:
        self.cache = cache
        self.places = inputs.places
        self._ops = ops
        self._batch = ops.plan_decode(slots.tables, numbers, inputs.lengths, cache.keys[0])

    def rotating(self, layer: int, heads: Heads, angles: Angles) -> torch.Tensor:
        """The same of heads as a projection leaves them, before their KV is in the cache: `model.RotatingAttention`."""
        assert self._ops.rotating_attention is not None
        caches = self.cache.keys[layer], self.cache.values[layer]
        return self._ops.rotating_attention(heads, angles, caches, self._batch, heads.q.shape[-1] ** -0.5)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return self._ops.decode_attention(q, keys, values, self._batch, q.shape[-1] ** -0.5)
