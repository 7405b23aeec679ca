"""The InternLM3 / Llama decoder on fused weights: linear, RMSNorm, RoPE, grouped-query attention, SiLU-gated MLP.

Attention itself is a callable of the step (see `attention`): a model computes tokens, whoever they belong to. Between
two attentions lies a segment, which depends on its rows alone (see `cuda.segments`). What it computes with is an `Ops`;
on torch's operations the arithmetic follows transformers' Llama to the cast, so that fp32 tokens are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding

from service.engine.attention import Attention, PagedCache
from service.engine.config import ModelConfig
from service.engine.kernels.ops import AddNorm, Affine, Angles, Heads, Ops
from service.engine.weights import Weights


@dataclass(frozen=True, slots=True)
class StepRows:
    """The tokens of a step, where they stand in their sequences, and where their KV goes; each int64 [T]."""

    tokens: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor


RotatingAttention = Callable[[int, Heads, Angles], torch.Tensor]
"""From a layer, the heads of its projection and the model's cos and sin to [T, heads, head_dim]."""


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

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            self.rotate(layer, qkv, rows, attention.cache)
            return attention(layer, *self.heads(qkv))

        return self._through_layers(tokens, attend)

    def decode(self, tokens: torch.Tensor, attention: RotatingAttention) -> torch.Tensor:
        """As `forward`, of one token a sequence, whose attention rotates them itself and writes their KV."""
        angles = self._cos, self._sin
        return self._through_layers(tokens, lambda layer, qkv: attention(layer, self.heads(qkv), angles))

    def enter(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first segment: the first layer's fused projection, and the residual."""
        x, first = embedding(tokens, self._weights.embedding), self._weights.layers[0]
        return self.ops.norm_linear(x, None, first.input_norm, self.config.rms_norm_eps, first.qkv, first.qkv_bias)

    def advance(self, layer: int, attended: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
        return self.ops.chain(gated, down, AddNorm(residual, following.input_norm, eps), into)

    def rotate(self, layer: int, qkv: torch.Tensor, rows: StepRows, cache: PagedCache) -> None:
        """Rotates q and k of a fused projection in place; k and v are in the cache then."""
        keys, values = cache.keys[layer], cache.values[layer]
        self.ops.rotate_and_cache(qkv, self._cos, self._sin, rows.positions, rows.places, keys, values)

    def heads(self, qkv: torch.Tensor) -> Heads:
        """q, k and v of a fused projection."""
        return Heads.of(qkv, self.config)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [R, vocab] of hidden states [R, hidden], in the weights' dtype."""
        return self.ops.linear(hidden, self._weights.head)

    def _through_layers(
        self, tokens: torch.Tensor, attend: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Final hidden states; `attend`: from a layer and its fused projection to [T, heads, head_dim]."""
        x, residual = self.enter(tokens)
        for layer in range(self.config.num_layers):
            x, residual = self.advance(layer, attend(layer, x).flatten(1), residual)
        return x


def rope_tables(config: ModelConfig, max_positions: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [max_positions, head_dim] with `like`'s dtype and device.

    Up to the model's max_positions dynamic NTK leaves the frequencies alone, so plain ones are exact.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), 1.0 / config.rope_theta**exponents)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().to(like), both.sin().to(like)
