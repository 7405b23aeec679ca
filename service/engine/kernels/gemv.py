"""Weight-streaming product of one row, which is bound by reading the weights.

Measured on an H100 for one row of the 8B model's matrices: cuBLAS 2.06-2.85 TB/s, this way 2.58-3.17 TB/s, of 3.09 TB/s
that a plain read reaches. Between two launches of a CUDA graph lie about 2 microseconds, 0.9 ms of a 6.3 ms step, so
one row also takes what stands around the product with it: residual add and RMSNorm before, SiLU gating after.
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.scales import scales_of
from service.engine.kernels.tuning import LinearTuning
from service.engine.quantization import Matrix, kept


@triton.jit
def stream(rows, start, K: tl.constexpr, BLOCK_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """BLOCK_K columns of each row from `start` on, zeros beyond the last. A weight is read once in a step: it must not
    push the activations, which all programs share, out of the caches."""
    k = start + tl.arange(0, BLOCK_K)[None, :]
    return tl.load(rows + k, mask=k < K, other=0.0, eviction_policy="evict_first")


@triton.jit
def one_row_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    norm_weight: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    total: tl.tensor,
    N: int,
    eps: float,
    OVERLAPS: tl.constexpr,
    K: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_NORM: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """N is the width of `out`; with GATED, weight, scales and bias have 2 N rows.

    The norm's factor is common to the whole row, and a weight row's scale to all of it, so that both are applied to the
    finished sums: one pass over x yields all.
    """
    program = tl.program_id(0)
    n = program * BLOCK_N + tl.arange(0, BLOCK_N)
    # Beyond the last output that one's row is read again, so that no load of weights needs a mask for it.
    read = tl.minimum(n, N - 1)
    row = weight + read[:, None].to(tl.int64) * K
    up_row = row + tl.full([1, 1], N, tl.int64) * K
    # The first columns are on their way while the row is still being computed, the next ones while these are used.
    w = stream(row, 0, K, BLOCK_K)
    up = stream(up_row, 0, K, BLOCK_K) if GATED else w
    scale = scales_of(scales, read, HAS_SCALES)
    scale_up = scales_of(scales + N, read, HAS_SCALES) if GATED else scale
    wait_for_inputs(OVERLAPS)
    partial = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    partial_up = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        next_w = stream(row, start + BLOCK_K, K, BLOCK_K)
        next_up = stream(up_row, start + BLOCK_K, K, BLOCK_K) if GATED else next_w
        wide = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
        # Before the sum is stored: for all the compiler knows, that might change it.
        gain = tl.load(norm_weight + k, mask=k < K, other=0.0).to(tl.float32) if HAS_NORM else 1.0
        if HAS_RESIDUAL:
            wide += tl.load(residual + k, mask=k < K, other=0.0).to(tl.float32)
            rounded = wide.to(total.dtype.element_ty)
            tl.store(total + k, rounded, mask=(k < K) & (program == 0))
            wide = rounded.to(tl.float32)
        if HAS_NORM:
            squares += wide * wide
            wide *= gain
        partial += w.to(tl.float32) * wide[None, :]
        if GATED:
            partial_up += up.to(tl.float32) * wide[None, :]
        w, up = next_w, next_up

    factor = tl.rsqrt(tl.sum(squares, 0) / K + eps) if HAS_NORM else 1.0
    result = tl.sum(partial, 1) * factor * scale
    if HAS_BIAS:
        result += tl.load(bias + read).to(tl.float32)
    if GATED:
        result_up = tl.sum(partial_up, 1) * factor * scale_up
        if HAS_BIAS:
            result_up += tl.load(bias + N + read).to(tl.float32)
        result *= tl.sigmoid(result) * result_up
    tl.store(out + n, result.to(out.dtype.element_ty), mask=n < N)


class OneRowLinear:
    """`ops.Linear` and `ops.NormLinear` for exactly one row; weights are contiguous."""

    def __init__(self, tuning: LinearTuning, *, overlaps: bool = False) -> None:
        self._tuning = tuning
        self._launch_options = launch_options(overlaps)

    def linear(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool = False) -> torch.Tensor:
        """See `ops.Linear`."""
        return self._launch(x, None, None, 0.0, weight, bias, gated)[0]

    def norm_linear(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm_weight: torch.Tensor,
        eps: float,
        weight: Matrix,
        bias: torch.Tensor | None,
        gated: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ops.NormLinear`."""
        return self._launch(x, residual, norm_weight, eps, weight, bias, gated)

    def _launch(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None,
        norm_weight: torch.Tensor | None,
        eps: float,
        weight: Matrix,
        bias: torch.Tensor | None,
        gated: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values, scales = kept(weight)
        width = weight.shape[0] // (2 if gated else 1)
        # As many bytes are in flight, whatever is read: a gated program reads two weight rows for each output, and
        # quantized rows are half as long.
        block_n = max(1, self._tuning.block_n * (1 if scales is None else 2) // (2 if gated else 1))
        out = torch.empty(1, width, dtype=x.dtype, device=x.device)
        depth = weight.shape[1]
        block_k = self._tuning.block_k
        if scales is None and depth <= self._tuning.whole_row:
            block_k = max(block_k, triton.next_power_of_2(depth))
        # Written by one program while others still read the old sum, hence never in place.
        total = x if residual is None else torch.empty_like(x)
        one_row_kernel[(triton.cdiv(width, block_n),)](
            x,
            x if residual is None else residual,
            x if norm_weight is None else norm_weight,
            values,
            x if scales is None else scales,
            x if bias is None else bias,
            out,
            total,
            width,
            eps,
            K=depth,
            HAS_RESIDUAL=residual is not None,
            HAS_NORM=norm_weight is not None,
            HAS_SCALES=scales is not None,
            HAS_BIAS=bias is not None,
            GATED=gated,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            num_warps=self._tuning.warps,
            num_stages=self._tuning.stages,
            **self._launch_options,
        )
        return out, total
