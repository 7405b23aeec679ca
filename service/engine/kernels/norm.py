"""Residual add and RMSNorm in one pass over a row: one program a row holds it in registers between sum and scaling."""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import launch_options, wait_for_inputs


@triton.jit
def add_rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    total: tl.tensor,
    width: int,
    eps: float,
    OVERLAPS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAPS)
    wide = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        wide += tl.load(residual + row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = wide.to(total.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=inside)
        wide = rounded.to(tl.float32)
    scaled = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps) * gain
    tl.store(normed + row + column, scaled.to(normed.dtype.element_ty), mask=inside)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, *, overlaps: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.AddRmsNorm`; x and residual are contiguous [T, width]. Scales in fp32, rounds once."""
    rows, width = x.shape
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(width)
    add_rms_norm_kernel[(rows,)](
        x,
        x if residual is None else residual,
        weight,
        normed,
        total,
        width,
        eps,
        HAS_RESIDUAL=residual is not None,
        BLOCK=block,
        num_warps=max(1, min(16, block // 512)),
        **launch_options(overlaps),
    )
    return normed, total
