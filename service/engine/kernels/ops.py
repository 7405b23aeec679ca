"""The operations of a step as one replaceable set: torch everywhere, a Triton kernel where one proved itself.

Shapes: T rows (tokens) of width `hidden`; a KV cache of one layer is two tensors
[num_blocks, block_size, kv_heads, head_dim]; block 0 belongs to nobody and takes the writes of padding rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from service.engine import sampling
from service.engine.attention import PrefillFactory
from service.engine.config import ModelConfig
from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeBatch, DecodeInputs
from service.engine.quantization import Matrix, linear
from service.engine.steps.slots import Slots


class AddRmsNorm(Protocol):
    """residual' = x + residual (x alone without one); returns (rms_norm(residual') * weight, residual')."""

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class RotateAndCache(Protocol):
    """Rotates q and k inside `qkv` [T, (heads + 2 * kv_heads) * head_dim], in place, and writes k and v to the cache.

    cos, sin: [max_positions, head_dim], both halves alike; positions, places: int64 [T]; a place is
    block * block_size + offset. Pairs are (i, i + head_dim / 2), as in Llama.
    """

    def __call__(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
    ) -> None: ...


class Locate(Protocol):
    """Where the sequences in the slots of these `numbers` [T] stand. Reads nothing back to the host."""

    def __call__(self, slots: Slots, numbers: torch.Tensor, block_size: int) -> DecodeInputs: ...


class PlanDecode(Protocol):
    """Prepares the attention of one decode step. Reads nothing back to the host, so a CUDA graph may hold it."""

    def __call__(
        self, block_tables: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, k_cache: torch.Tensor
    ) -> DecodeBatch: ...


class DecodeAttention(Protocol):
    """softmax(q k^T * scale) v of one query a sequence, over its own blocks: q and result [T, heads, head_dim]."""

    def __call__(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor: ...


class Heads(NamedTuple):
    """What a fused projection gives of each token, as views of one tensor."""

    q: torch.Tensor  # [T, heads, head_dim]
    k: torch.Tensor  # [T, kv_heads, head_dim]
    v: torch.Tensor  # [T, kv_heads, head_dim]

    @classmethod
    def of(cls, qkv: torch.Tensor, c: ModelConfig) -> "Heads":
        """Those of a projection [T, (heads + 2 * kv_heads) * head_dim]."""
        heads = qkv.view(-1, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        return cls(*torch.split(heads, [c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1))


Angles = tuple[torch.Tensor, torch.Tensor]
"""RotateAndCache's cos and sin."""
Caches = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer."""


class RotatingAttention(Protocol):
    """RotateAndCache, then DecodeAttention, for heads as the projection leaves them, which stay as they are.

    A row stands at the last position of its length, and its place in the caches follows from its blocks. The batch is
    planned by the `plan_decode` beside it.
    """

    def __call__(
        self,
        heads: Heads,
        angles: Angles,
        caches: Caches,
        batch: DecodeBatch,
        scale: float,
    ) -> torch.Tensor: ...


class SiluMul(Protocol):
    """silu(gate) * up for gate_up [T, 2 * width], the gate first: [T, width]."""

    def __call__(self, gate_up: torch.Tensor) -> torch.Tensor: ...


class Linear(Protocol):
    """x [T, K] times weight [N, K] transposed, plus bias [N]. `gated`: SiLU(first half) * second half: [T, N / 2]."""

    def __call__(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool = False
    ) -> torch.Tensor: ...


def nothing() -> None:
    """What happens between two launches."""


class Affine(NamedTuple):
    """What a `Linear` multiplies with and adds."""

    weight: Matrix
    bias: torch.Tensor | None = None


class AddNorm(NamedTuple):
    """What an `AddRmsNorm` adds to its x and scales that with."""

    residual: torch.Tensor
    weight: torch.Tensor
    eps: float


class Product(NamedTuple):
    """A kind of `Linear`: the most rows that a kernel is judged for at once, and the weight's shape."""

    rows: int
    width: int
    depth: int
    gated: bool


class NormLinear(Protocol):
    """AddRmsNorm, then Linear on its first result; returns the product and residual'."""

    def __call__(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm_weight: torch.Tensor,
        eps: float,
        weight: Matrix,
        bias: torch.Tensor | None,
        gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Chain(Protocol):
    """Linear, then AddRmsNorm on its result, then Linear on that: returns the last product and residual'.

    `between` is called between the two launches, by who must know that nothing hangs on their overlap.
    """

    def __call__(
        self,
        x: torch.Tensor,
        first: Affine,
        norm: AddNorm,
        second: Affine,
        gated: bool = False,
        between: Callable[[], object] = nothing,
    ) -> tuple[torch.Tensor, torch.Tensor]: ...


class Sample(Protocol):
    """One token per row [T] of logits [T, vocab], drawn as the slots of these `numbers` [T] say (`sampling.sample`).

    The slots then advance, but for the spare one, which rows of padding share: its position stays.
    """

    def __call__(
        self, logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: set[sampling.Method]
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """What a model computes a step with. The last ones are None where no kernel beats the plain way."""

    add_rms_norm: AddRmsNorm = torch_ops.add_rms_norm
    rotate_and_cache: RotateAndCache = torch_ops.rotate_and_cache
    locate: Locate = torch_ops.locate
    plan_decode: PlanDecode = torch_ops.plan_decode
    decode_attention: DecodeAttention = torch_ops.decode_attention
    silu_mul: SiluMul = torch_ops.silu_mul
    sample: Sample = torch_ops.sample
    rotating_attention: RotatingAttention | None = None
    one_row_linear: Linear | None = None
    few_rows_linear: Linear | None = None
    many_rows_linear: Linear | None = None
    one_row_norm_linear: NormLinear | None = None
    few_rows_chain: Chain | None = None
    many_rows_chain: Chain | None = None
    chunk_attention: PrefillFactory | None = None
    few_rows: tuple[int, ...] = (16, 32, 64)  # the rows that few_rows_linear is judged at, ascending
    many_rows: tuple[int, ...] = (128, 192, 256)  # and many_rows_linear
    outrun: frozenset[Product] = frozenset()  # what torch computes faster than the kernel
    parted: frozenset[Product] = frozenset()  # second products of chains that are faster link by link

    @property
    def judged_rows(self) -> tuple[int, ...]:
        """The rows that kernels of products are judged at, ascending; more are the library's."""
        return (1, *self.few_rows, *self.many_rows)

    def linear(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None, gated: bool = False
    ) -> torch.Tensor:
        """`Linear` by whatever is fastest for this number of rows."""
        kernel = self._linear_kernel(x.shape[0], weight, gated)
        if kernel is not None:
            return kernel(x, weight, bias, gated)
        product = linear(x, weight, bias)
        return self.silu_mul(product) if gated else product

    def norm_linear(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm_weight: torch.Tensor,
        eps: float,
        weight: Matrix,
        bias: torch.Tensor | None = None,
        gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`NormLinear`: one kernel for one row, two operations for more."""
        if self.one_row_norm_linear is not None and self._serves(1, x.shape[0], weight, gated):
            return self.one_row_norm_linear(x, residual, norm_weight, eps, weight, bias, gated)
        normed, residual = self.add_rms_norm(x, residual, norm_weight, eps)
        return self.linear(normed, weight, bias, gated), residual

    def chain(
        self, x: torch.Tensor, first: Affine, norm: AddNorm, second: Affine, gated: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`Chain`: two launches, unless torch computes one of the products faster, or the chain lost to its links."""
        kernel = self.chain_kernel(x.shape[0], first.weight, second.weight, gated)
        if kernel is not None:
            return kernel(x, first, norm, second, gated)
        return self.norm_linear(self.linear(x, *first), *norm, *second, gated)

    def chain_kernel(self, rows: int, first: Matrix, second: Matrix, gated: bool) -> Chain | None:
        """What computes a chain to these two weights in two launches; None: it goes link by link."""
        most, (width, depth) = self._judged_at(rows), second.shape
        serves = self._serves(most, rows, first, False) and self._serves(most, rows, second, gated)
        if most == 1 or not serves or Product(most, width, depth, gated) in self.parted:
            return None
        return self.few_rows_chain if most in self.few_rows else self.many_rows_chain

    def _judged_at(self, rows: int) -> int:
        """The least number that so many are judged by; 0 where none is."""
        return next((most for most in self.judged_rows if most >= rows), 0)

    def _linear_kernel(self, rows: int, weight: Matrix, gated: bool) -> Linear | None:
        most = self._judged_at(rows)
        if not self._serves(most, rows, weight, gated):
            return None
        if most == 1:
            return self.one_row_linear
        return self.few_rows_linear if most in self.few_rows else self.many_rows_linear

    def _serves(self, most: int, rows: int, weight: Matrix, gated: bool) -> bool:
        width, depth = weight.shape
        return rows <= most and Product(most, width, depth, gated) not in self.outrun
