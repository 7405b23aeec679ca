"""Decode attention by the operations of `kernels.ops`: planned once a step, with nothing the host has to know."""

import torch

from service.engine.attention import PagedCache
from service.engine.kernels.ops import Ops


class PlannedDecodeAttention:
    """Attention of one new token per row. `tables` int32 [S, W] are all slots' block tables, `slots` [B] the rows.

    Reads nothing back and depends on no length, so a CUDA graph that holds it serves any lengths.
    """

    def __init__(
        self, cache: PagedCache, ops: Ops, tables: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor
    ) -> None:
        self.cache = cache
        size = cache.block_size
        self.places = tables[slots, positions // size].long() * size + positions % size
        self._ops = ops
        self._batch = ops.plan_decode(tables, slots, (positions + 1).to(torch.int32), cache.keys[0])

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        return self._ops.decode_attention(q, keys, values, self._batch, q.shape[-1] ** -0.5)
