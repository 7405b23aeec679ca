"""SiLU(gate) * up in one pass: reads 2 and writes 1 value per output, where eager torch makes five passes."""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import launch_options, wait_for_inputs

BLOCK = 1024


@triton.jit
def silu_mul_kernel(
    gate_up: tl.tensor, out: tl.tensor, width: int, OVERLAPS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor, *, overlaps: bool = False) -> torch.Tensor:
    """See `ops.SiluMul`; `gate_up` is contiguous."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    silu_mul_kernel[(rows, triton.cdiv(width, BLOCK))](
        gate_up, out, width, BLOCK=BLOCK, num_warps=4, **launch_options(overlaps)
    )
    return out
