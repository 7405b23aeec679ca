"""The scales of quantized weights, in kernels that multiply with them."""
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def scales_of(scales, read, HAS_SCALES: tl.constexpr):
    """What the sums of the weight rows `read` are multiplied with: a scale each, or one, which compiles to nothing.

    They are weights: a kernel may read them before its inputs are there (see `overlap`).
    """
    if HAS_SCALES:
        return tl.load(scales + read)
    return tl.full(read.shape, 1.0, tl.float32)
