"""The kernel of `few_rows`: one tile of a transposed product, or a part of one, and what comes behind its sums."""
# mypy: disable-error-code="untyped-decorator"

import triton
import triton.language as tl

from service.engine.kernels.overlap import prefetch_weights, wait_for_inputs
from service.engine.kernels.scales import scales_of

MASKED_ROWS, PAIRED_ROWS = tl.constexpr(128), tl.constexpr(64)
"""Most rows of a tile whose sums leave its threads registers for masks, and for as many sums again."""


@triton.jit
def weight_rows(tile, N, GATED: tl.constexpr, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight rows of a tile. Beyond the last output that one's are read again: what is computed of them is not
    stored, and no load needs a mask for them.

    A gated tile has eight rows of the gate, the eight that belong to them, and so on: a tensor core leaves rows that
    lie eight apart to the same thread, which then multiplies them without asking another one.
    """
    i = tl.arange(0, BLOCK_N)
    if GATED:
        return tl.minimum(tile * (BLOCK_N // 2) + i // 16 * 8 + i % 8, N - 1) + i // 8 % 2 * N
    return tl.minimum(tile * BLOCK_N + i, N - 1)


@triton.jit
def gate_and_up(product, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two halves of what `weight_rows` has mixed."""
    eights = tl.reshape(product, [BLOCK_N // 16, 2, 8, BLOCK_M])
    gate, up = tl.split(tl.permute(eights, (0, 2, 3, 1)))
    return tl.reshape(gate, [BLOCK_N // 2, BLOCK_M]), tl.reshape(up, [BLOCK_N // 2, BLOCK_M])


@triton.jit
def norm_factor(squares, m, K, eps, tiles, TILES: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """What RMSNorm multiplies each row m with, by the sums of squares that `add_residual` left."""
    tile = tl.arange(0, TILES)
    at = tile[:, None] * BLOCK_M + m[None, :]
    each = tl.load(squares + at, mask=(tile < tiles)[:, None], other=0.0)
    return tl.rsqrt(tl.sum(each, 0) / K + eps)


@triton.jit
def add_residual(product, residual, gain, total, squares, at, read, n, m, tile, rows, N, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """Stores the sum with the residual, and the tile's share of each row's sum of squares; the sum times the norm's
    gain is what the next product multiplies, and then by `norm_factor`, which is common to a row."""
    inside = (n < N)[:, None]
    stored = inside & (m < rows)[None, :]
    rounded = (product + tl.load(residual + at, mask=stored, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=stored)
    wide = tl.where(inside, rounded.to(tl.float32), 0.0)
    tl.store(squares + tile * BLOCK_M + m, tl.sum(wide * wide, 0))
    return wide * tl.load(gain + read).to(tl.float32)[:, None]


@triton.jit
def finish(  # type: ignore[no-untyped-def]
    product,
    tile,
    read,
    scale,
    bias,
    residual,
    gain,
    total,
    squares,
    out,
    rows,
    N,
    K,
    eps,
    normed_tiles,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
    NORMED_TILES: tl.constexpr,
):
    """What comes behind the sums of a tile of the weight rows `read`, which is then stored transposed."""
    BLOCK_N: tl.constexpr = product.shape[0]
    BLOCK_M: tl.constexpr = product.shape[1]
    OUTPUTS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    m = tl.arange(0, BLOCK_M)
    product *= scale[:, None]
    if NORMED_TILES > 0:
        product *= norm_factor(squares, m, K, eps, normed_tiles, NORMED_TILES, BLOCK_M)[None, :]
    if HAS_BIAS:
        product += tl.load(bias + read).to(tl.float32)[:, None]
    if GATED:
        product, up = gate_and_up(product, BLOCK_N, BLOCK_M)
        product *= tl.sigmoid(product) * up
    n = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    stored = (n < N)[:, None] & (m < rows)[None, :]
    at = m[None, :] * N + n[:, None]
    if ADDS:
        product = add_residual(product, residual, gain, total, squares, at, read, n, m, tile, rows, N, BLOCK_M)
    tl.store(out + at, product.to(out.dtype.element_ty), mask=stored)


@triton.jit
def settled(product):  # type: ignore[no-untyped-def]
    """The same, once it is there: whatever reads a product waits for the tensor cores that compute it.

    Those of Hopper compute on while the threads go on, and read a left operand that was converted, as quantized weights
    are, out of the threads' registers. Triton leaves one step's product under way while the next step is loaded, and
    nothing has the loads wait until its registers were read (https://github.com/triton-lang/triton/issues/9433). 16-bit
    weights lie in shared memory, which is not written before.
    """
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [product], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def columns(pointers, k, K, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns k of each row; zeros from K on."""
    if EVEN:
        return tl.load(pointers + k[None, :])
    return tl.load(pointers + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit
def activations(x, m, rows, k, K, EVEN: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns k of x's rows m, and zeros behind the last row. Reading that one again instead has all programs ask
    for the same line of the L2 cache, once more for each row that is not there: only where there is no room for masks.
    """
    if BLOCK_M > MASKED_ROWS:
        return columns(x + tl.minimum(m, rows - 1)[:, None] * K, k, K, EVEN)
    inside = (m < rows)[:, None] if EVEN else (m < rows)[:, None] & (k < K)[None, :]
    return tl.load(x + m[:, None] * K + k[None, :], mask=inside, other=0.0)


@triton.jit
def sum_of_parts(here, parts, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of a tile's parts, in their order, each read while the one before it is added where there are registers
    for two."""
    SIZE: tl.constexpr = BLOCK_N * BLOCK_M
    summed = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if BLOCK_M <= PAIRED_ROWS:
        coming = tl.load(here, cache_modifier=".cg")
        for other in range(1, parts):
            current = coming
            coming = tl.load(here + other * SIZE, cache_modifier=".cg")
            summed += current
        return summed + coming
    for other in range(parts):
        summed += tl.load(here + other * SIZE, cache_modifier=".cg")
    return summed


@triton.jit(do_not_specialize=["rows", "whole", "parts", "normed_tiles"])
def few_rows_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    gain: tl.tensor,
    total: tl.tensor,
    squares: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    rows: int,
    N: int,
    K: int,
    whole: int,
    parts: int,
    depth: int,
    eps: float,
    normed_tiles: int,
    OVERLAPS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    SETTLES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADDS: tl.constexpr,
    NORMED_TILES: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
) -> None:
    """One program for each of the `whole` tiles of weight rows that come first; of the others, with SPLIT, one for each
    of their `parts`: `depth` columns, a multiple of BLOCK_K.

    N: outputs of a row, of which each has two weight rows with GATED. EVEN: K is a multiple of BLOCK_K. PIECES of PIECE
    columns of each row are prefetched, none for 0. `arrivals` counts the parts that are done with each tile; it is zero
    before the launch, and again after it.

    SETTLES: each step's product is waited for, see `settled`.

    ADDS: the product goes into the residual stream, and `out` is what a norm makes of that but for each row's factor
    (see `add_residual`). NORMED_TILES: x is such an `out`, of `normed_tiles` tiles, rounded up to a power of two; 0
    for any other x.
    """
    program = tl.program_id(0)
    tile, part, first, last = program, 0, 0, K
    if SPLIT and program >= whole:
        tile, part = whole + (program - whole) // parts, (program - whole) % parts
        first = part * depth
        last = tl.minimum(first + depth, K)
    read = weight_rows(tile, N, GATED, BLOCK_N)
    row = weight + read[:, None].to(tl.int64) * K
    if OVERLAPS and PIECES > 0:
        prefetch_weights(row + tl.minimum(first + tl.arange(0, PIECES)[None, :] * PIECE, K - PIECE))
    scale = scales_of(scales, read, HAS_SCALES)
    wait_for_inputs(OVERLAPS)

    m = tl.arange(0, BLOCK_M)
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        value = tl.trans(activations(x, m, rows, k, K, EVEN, BLOCK_M))
        product = tl.dot(columns(row, k, K, EVEN).to(value.dtype), value, product, input_precision="ieee")
        if SETTLES:
            product = settled(product)

    if SPLIT and program >= whole:
        counter = arrivals + tile - whole
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        here = partial + (tile - whole) * parts * BLOCK_N * BLOCK_M + inner
        tl.store(here + part * BLOCK_N * BLOCK_M, product)
        tl.debug_barrier()  # one thread announces what all have written
        if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
            summed = sum_of_parts(here, parts, BLOCK_N, BLOCK_M)
            tl.store(counter, 0)
            finish(
                summed, tile, read, scale, bias, residual, gain, total, squares, out, rows, N, K, eps, normed_tiles,
                HAS_BIAS, GATED, ADDS, NORMED_TILES,
            )  # fmt: skip
    else:
        finish(
            product, tile, read, scale, bias, residual, gain, total, squares, out, rows, N, K, eps, normed_tiles,
            HAS_BIAS, GATED, ADDS, NORMED_TILES,
        )  # fmt: skip
