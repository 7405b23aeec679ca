"""The operations of a step in plain torch: right on every device, and what each kernel must agree with.

Casts follow transformers' Llama. Nothing here reads a value back to the host, so a CUDA graph may hold all of it.
"""

import torch
from torch.nn.functional import silu

from service.engine import sampling
from service.engine.kernels.batch import DecodeBatch, DecodeInputs
from service.engine.steps.slots import Slots

BLOCKS_AT_ONCE = 32
"""KV blocks gathered at a time: bounds the extra memory, whatever the longest context."""


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.AddRmsNorm`."""
    residual = x if residual is None else x + residual
    wide = residual.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype), residual


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `ops.SiluMul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up


def rotate_and_cache(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    places: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
) -> None:
    """See `ops.RotateAndCache`."""
    kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    rotated, v = heads[:, :-kv_heads], heads[:, -kv_heads:]
    first, second = rotated.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    rotated.copy_(rotated * cos[positions, None] + turned * sin[positions, None])
    k_cache.flatten(0, 1).index_copy_(0, places, rotated[:, -kv_heads:])
    v_cache.flatten(0, 1).index_copy_(0, places, v)


def locate(slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs:
    """See `ops.Locate`."""
    positions = slots.positions[numbers]
    blocks = slots.tables[numbers, positions // block_size].long()
    places = blocks * block_size + positions % block_size
    return DecodeInputs(slots.tokens[numbers], positions, places, (positions + 1).to(torch.int32))


def plan_decode(
    block_tables: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, k_cache: torch.Tensor
) -> DecodeBatch:
    """See `ops.PlanDecode`; nothing to prepare here."""
    return DecodeBatch(block_tables, slots, lengths)


def decode_attention(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
) -> torch.Tensor:
    """See `ops.DecodeAttention`. One softmax over pieces of the context, each rescaled to the largest score so far."""
    rows, heads, head_dim = q.shape
    block_size, kv_heads = k_cache.shape[1:3]
    grouped = q.reshape(rows, kv_heads, -1, head_dim).float() * scale
    best = q.new_full((*grouped.shape[:3], 1), -1e30, dtype=torch.float32)
    total = torch.zeros_like(best)
    summed = torch.zeros_like(grouped)
    tables = batch.block_tables[batch.slots]
    for start in range(0, tables.shape[1], BLOCKS_AT_ONCE):
        blocks = tables[:, start : start + BLOCKS_AT_ONCE].long()
        token = torch.arange(blocks.shape[1] * block_size, device=q.device) + start * block_size
        outside = (token >= batch.lengths[:, None])[:, :, None, None]
        # What lies behind a sequence's end may be a stranger's or NaN, which a weight of zero would not take away.
        k = k_cache[blocks].flatten(1, 2).float().masked_fill(outside, 0.0)
        v = v_cache[blocks].flatten(1, 2).float().masked_fill(outside, 0.0)
        scores = torch.einsum("bhgd,bthd->bhgt", grouped, k).masked_fill(outside[:, None, None, :, 0, 0], -1e30)
        largest = torch.maximum(best, scores.amax(-1, keepdim=True))
        weights = (scores - largest).exp().masked_fill(outside[:, None, None, :, 0, 0], 0.0)
        shrink = (best - largest).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        summed = summed * shrink + torch.einsum("bhgt,bthd->bhgd", weights, v)
        best = largest
    return (summed / total.clamp_min(1e-30)).to(q.dtype).view(rows, heads, head_dim)


def sample(logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: set[sampling.Method]) -> torch.Tensor:
    """See `ops.Sample`."""
    tokens = sampling.sample(logits, slots.rows(numbers), slots.positions[numbers] + 1, methods)
    slots.advance(numbers, tokens)
    return tokens
