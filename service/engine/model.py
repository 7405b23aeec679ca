"""The InternLM3 / Llama decoder on fused weights: linear, RMSNorm, RoPE, grouped-query attention, SiLU-gated MLP.

Attention itself is a callable of the step (see `attention`): a model computes tokens, whoever they belong to.
Arithmetic follows transformers' Llama to the cast, so that fp32 tokens are the same.
"""

from typing import Protocol

import torch
from torch.nn.functional import embedding, linear, silu

from service.engine.config import ModelConfig
from service.engine.weights import LayerWeights, Weights


class Attention(Protocol):
    """Attention of one step's tokens over what each may see."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q [T, heads, head_dim] and the new k, v [T, kv_heads, head_dim] -> [T, heads, head_dim]."""
        ...


class Model:
    """A decoder with its weights; stateless between calls."""

    def __init__(self, config: ModelConfig, weights: Weights, max_positions: int) -> None:
        self.config = config
        self._weights = weights
        self._cos, self._sin = rope_tables(config, max_positions, weights.embedding)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [T, hidden] of `tokens` [T] at `positions` [T]."""
        eps = self.config.rms_norm_eps
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        residual = embedding(tokens, self._weights.embedding)
        for index, layer in enumerate(self._weights.layers):
            hidden = rms_norm(residual, layer.input_norm, eps)
            q, k, v = self._qkv(hidden, layer)
            attended = attention(index, rotate(q, cos, sin), rotate(k, cos, sin), v)
            residual = residual + linear(attended.flatten(1), layer.o, layer.o_bias)
            residual = residual + _mlp(rms_norm(residual, layer.post_norm, eps), layer)
        return rms_norm(residual, self._weights.norm, eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """fp32 logits [R, vocab] of hidden states [R, hidden]."""
        return linear(hidden, self._weights.head).float()

    def _qkv(self, hidden: torch.Tensor, layer: LayerWeights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c = self.config
        heads = linear(hidden, layer.qkv, layer.qkv_bias).view(-1, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return q, k, v


def _mlp(hidden: torch.Tensor, layer: LayerWeights) -> torch.Tensor:
    gate, up = linear(hidden, layer.gate_up, layer.gate_up_bias).chunk(2, dim=-1)
    return linear(silu(gate) * up, layer.down, layer.down_bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T, hidden] over its root mean square, which is taken in fp32, times weight [hidden]."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE of x [T, heads, head_dim] by cos, sin [T, 1, head_dim]; pairs are (i, i + head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rope_tables(config: ModelConfig, max_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [max_positions, head_dim] with `like`'s dtype and device.

    Up to the model's max_positions dynamic NTK leaves the frequencies alone, so plain ones are exact.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(like), both.sin().to(like)
