"""The sampling kernels' noise laid open; a module of its own since Triton must be told to interpret first."""

import triton
import triton.language as tl

# ruff: noqa: N803 - constants of a kernel are capitals
from service.engine.kernels.sampling_math import gumbel, row_keys


@triton.jit
def noise_kernel(seeds, positions, tokens, noise, first_out, second_out, count, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first, second = row_keys(tl.load(seeds + row), tl.load(positions + row))
    tl.store(first_out + row, first.to(tl.int32, bitcast=True))
    tl.store(second_out + row, second.to(tl.int32, bitcast=True))
    column = tl.arange(0, BLOCK)
    token = tl.load(tokens + column, mask=column < count, other=0)
    tl.store(noise + row * count + column, gumbel(first, second, token), mask=column < count)
