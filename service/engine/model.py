"""The InternLM3 / Llama decoder on fused weights: linear, RMSNorm, RoPE, grouped-query attention, SiLU-gated MLP.

Attention itself is a callable of the step (see `attention`): a model computes tokens, whoever they belong to. What it
computes with is an `Ops`; on torch's operations the arithmetic follows transformers' Llama to the cast, so that fp32
tokens are the same.
"""

import torch
from torch.nn.functional import embedding

from service.engine.attention import Attention
from service.engine.config import ModelConfig
from service.engine.kernels.ops import Ops
from service.engine.weights import LayerWeights, Weights


class Model:
    """A decoder with its weights; stateless between calls."""

    def __init__(self, config: ModelConfig, weights: Weights, max_positions: int, ops: Ops | None = None) -> None:
        self.config = config
        self.ops = ops or Ops()
        self._weights = weights
        self._cos, self._sin = rope_tables(config, max_positions, weights.embedding)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [T, hidden] of `tokens` [T] at `positions` [T]; writes their KV."""
        eps = self.config.rms_norm_eps
        ops, residual = self.ops, None
        x = embedding(tokens, self._weights.embedding)
        for index, layer in enumerate(self._weights.layers):
            qkv, residual = ops.norm_linear(x, residual, layer.input_norm, eps, layer.qkv, layer.qkv_bias)
            attended = self._attend(index, qkv, positions, attention)
            x = ops.linear(attended, layer.o, layer.o_bias)
            x, residual = self._mlp(x, residual, layer)
        return ops.add_rms_norm(x, residual, self._weights.norm, eps)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, vocab] of hidden states [R, hidden], in the weights' dtype."""
        return self.ops.linear(hidden, self._weights.head)

    def _attend(self, index: int, qkv: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """[T, heads * head_dim] of one layer's fused projection [T, (heads + 2 * kv_heads) * head_dim]."""
        c, cache = self.config, attention.cache
        keys, values = cache.keys[index], cache.values[index]
        self.ops.rotate_and_cache(qkv, self._cos, self._sin, positions, attention.places, keys, values)
        heads = qkv.view(-1, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return attention(index, q, k, v).flatten(1)

    def _mlp(self, x: torch.Tensor, residual: torch.Tensor, layer: LayerWeights) -> tuple[torch.Tensor, torch.Tensor]:
        gated, residual = self.ops.norm_linear(
            x, residual, layer.post_norm, self.config.rms_norm_eps, layer.gate_up, layer.gate_up_bias, gated=True
        )
        return self.ops.linear(gated, layer.down, layer.down_bias), residual


def rope_tables(config: ModelConfig, max_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [max_positions, head_dim] with `like`'s dtype and device.

    Up to the model's max_positions dynamic NTK leaves the frequencies alone, so plain ones are exact.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(like), both.sin().to(like)
