"""An attention that rotates, in plain torch: what stands for the kernel where there is none."""

import torch

from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.ops import Angles, Caches, Heads


def rotate_and_attend(heads: Heads, angles: Angles, caches: Caches, batch: DecodeBatch, scale: float) -> torch.Tensor:
    """`ops.RotatingAttention`, by rotation of a copy."""
    size, last = caches[0].shape[1], batch.lengths.long() - 1
    places = batch.block_tables[batch.slots, last // size].long() * size + last % size
    qkv = torch.cat(heads, dim=1)
    torch_ops.rotate_and_cache(qkv.flatten(1), *angles, last, places, *caches)
    return torch_ops.decode_attention(qkv[:, : heads.q.shape[1]], *caches, batch, scale)
