"""The InternLM3 / Llama decoder on fused weights: linear, RMSNorm, RoPE, grouped-query attention, SiLU-gated MLP.

Attention itself is a callable of the step (see `attention`): a model computes tokens, whoever they belong to. Between
two attentions lies a segment, which depends on its rows alone (see `cuda.segments`). What it computes with is an `Ops`;
on torch's operations the arithmetic follows transformers' Llama to the cast, so that fp32 tokens are the same.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding

from service.engine.attention import Attention, PagedCache
from service.engine.config import ModelConfig
from service.engine.kernels.ops import Ops
from service.engine.weights import LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class StepRows:
    """The tokens of a step, where they stand in their sequences, and where their KV goes; each int64 [T]."""

    tokens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor


class Model:
    """A decoder with its weights; stateless between calls."""

    def __init__(self, config: ModelConfig, weights: Weights, max_positions: int, ops: Ops | None = None) -> None:
        self.config = config
        self.ops = ops or Ops()
        self._weights = weights
        self._cos, self._sin = rope_tables(config, max_positions, weights.embedding)

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        """Final hidden states [T, hidden] of `tokens` [T] at `positions` [T]; writes their KV."""
        rows = StepRows(tokens, positions, attention.places)
        x, residual = self.enter(rows, attention.cache)
        for layer in range(self.config.num_layers):
            attended = attention(layer, *self.heads(x)).flatten(1)
            x, residual = self.advance(layer, attended, residual, rows, attention.cache)
        return x

    def enter(self, rows: StepRows, cache: PagedCache) -> tuple[torch.Tensor, torch.Tensor]:
        """The first segment: the first layer's fused projection, rotated and its KV written, and the residual."""
        return self._project(0, embedding(rows.tokens, self._weights.embedding), None, rows, cache)

    def advance(
        self, layer: int, attended: torch.Tensor, residual: torch.Tensor, rows: StepRows, cache: PagedCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The segment after the attention of `layer`, which gave `attended` [T, heads * head_dim]: the next layer's
        projection as from `enter`, or after the last layer the final hidden states; and the residual."""
        weights = self._weights.layers[layer]
        x, residual = self._mlp(self.ops.linear(attended, weights.o, weights.o_bias), residual, weights)
        if layer + 1 < self.config.num_layers:
            return self._project(layer + 1, x, residual, rows, cache)
        return self.ops.add_rms_norm(x, residual, self._weights.norm, self.config.rms_norm_eps)

    def heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, heads, head_dim] and k, v [T, kv_heads, head_dim] of a fused projection, as views."""
        c = self.config
        heads = qkv.view(-1, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return q, k, v

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, vocab] of hidden states [R, hidden], in the weights' dtype."""
        return self.ops.linear(hidden, self._weights.head)

    def _project(
        self, layer: int, x: torch.Tensor, residual: torch.Tensor | None, rows: StepRows, cache: PagedCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer's fused projection [T, (heads + 2 * kv_heads) * head_dim] and the residual."""
        weights, eps = self._weights.layers[layer], self.config.rms_norm_eps
        qkv, residual = self.ops.norm_linear(x, residual, weights.input_norm, eps, weights.qkv, weights.qkv_bias)
        keys, values = cache.keys[layer], cache.values[layer]
        self.ops.rotate_and_cache(qkv, self._cos, self._sin, rows.positions, rows.places, keys, values)
        return qkv, residual

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
