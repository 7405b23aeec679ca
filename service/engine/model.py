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
from service.engine.kernels.ops import AddNorm, Affine, Ops
from service.engine.weights import Weights


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
        x, first = embedding(rows.tokens, self._weights.embedding), self._weights.layers[0]
        eps = self.config.rms_norm_eps
        qkv, residual = self.ops.norm_linear(x, None, first.input_norm, eps, first.qkv, first.qkv_bias)
        return self._rotated(0, qkv, rows, cache), residual

    def advance(
        self, layer: int, attended: torch.Tensor, residual: torch.Tensor, rows: StepRows, cache: PagedCache
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The segment after the attention of `layer`, which gave `attended` [T, heads * head_dim]: the next layer's
        projection as from `enter`, or after the last layer the final hidden states; and the residual."""
        this, eps = self._weights.layers[layer], self.config.rms_norm_eps
        output, gate_up = Affine(this.o, this.o_bias), Affine(this.gate_up, this.gate_up_bias)
        gated, residual = self.ops.chain(attended, output, AddNorm(residual, this.post_norm, eps), gate_up, gated=True)
        down = Affine(this.down, this.down_bias)
        if layer + 1 == self.config.num_layers:
            return self.ops.add_rms_norm(self.ops.linear(gated, *down), residual, self._weights.norm, eps)
        following = self._weights.layers[layer + 1]
        into = Affine(following.qkv, following.qkv_bias)
        qkv, residual = self.ops.chain(gated, down, AddNorm(residual, following.input_norm, eps), into)
        return self._rotated(layer + 1, qkv, rows, cache), residual

    def heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [T, heads, head_dim] and k, v [T, kv_heads, head_dim] of a fused projection, as views."""
        c = self.config
        heads = qkv.view(-1, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        q, k, v = torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1)
        return q, k, v

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, vocab] of hidden states [R, hidden], in the weights' dtype."""
        return self.ops.linear(hidden, self._weights.head)

    def _rotated(self, layer: int, qkv: torch.Tensor, rows: StepRows, cache: PagedCache) -> torch.Tensor:
        """The fused projection with q and k rotated; k and v are in the cache then."""
        keys, values = cache.keys[layer], cache.values[layer]
        self.ops.rotate_and_cache(qkv, self._cos, self._sin, rows.positions, rows.places, keys, values)
        return qkv


def rope_tables(config: ModelConfig, max_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [max_positions, head_dim] with `like`'s dtype and device.

    Up to the model's max_positions dynamic NTK leaves the frequencies alone, so plain ones are exact.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(like), both.sin().to(like)
