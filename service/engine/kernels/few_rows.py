"""Weight-streaming product of 2 to 256 rows, where a matmul is still bound by reading the weights, or nearly.

The transposed product: weights are the tall operand of the tensor core, the rows, padded, the narrow one. Every program
reads all rows, from the L2 cache, so that a tile must be taller than the rows are many for the weights to set the pace.
Tall tiles are few: then several programs share one, each a part of its columns, and the last one to finish adds up.
"""
# mypy: disable-error-code="untyped-decorator"

from collections.abc import Mapping

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import PREFETCHED_BYTES, launch_options, prefetch_weights, wait_for_inputs
from service.engine.kernels.scales import scales_of
from service.engine.kernels.tuning import LinearTuning
from service.engine.quantization import Matrix, kept

LEAST_DEPTH = 4
"""Steps along K that a program is worth: fewer are over before its loads are under way."""
CROWDING = 1.25
"""Most programs per multiprocessor for the sake of which a product is split."""


@triton.jit
def finish(product, product_up, scale, scale_up, bias, out, n, m, rows, N, HAS_BIAS: tl.constexpr, GATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales, bias, gate, and the tile [n, m] stored transposed."""
    product *= scale[:, None]
    if HAS_BIAS:
        product += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if GATED:
        product_up *= scale_up[:, None]
        if HAS_BIAS:
            product_up += tl.load(bias + N + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        product *= tl.sigmoid(product) * product_up
    stored = (n < N)[:, None] & (m < rows)[None, :]
    tl.store(out + m[None, :] * N + n[:, None], product.to(out.dtype.element_ty), mask=stored)


@triton.jit
def columns(pointers, k, K, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns k of each row; zeros from K on."""
    if EVEN:
        return tl.load(pointers + k[None, :])
    return tl.load(pointers + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit(do_not_specialize=["rows"])
def few_rows_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    arrivals: tl.tensor,
    rows: int,
    N: int,
    K: int,
    depth: int,
    OVERLAPS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
) -> None:
    """One program a tile of weight rows and part of its columns: `depth` of them, a multiple of BLOCK_K.

    EVEN: K is a multiple of BLOCK_K. PIECES of PIECE columns of each row are prefetched, none for 0. With SPLIT,
    `arrivals` counts the parts that are done with each tile; it is zero before the launch, and again after it.
    """
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    first = part * depth
    last = tl.minimum(first + depth, K)
    # Beyond the last row that one is read again: what is computed of it is not stored, and no load needs a mask for it.
    row = weight + tl.minimum(n, N - 1)[:, None].to(tl.int64) * K
    up_row = row + tl.full([1, 1], N, tl.int64) * K
    if OVERLAPS and PIECES > 0:
        pieces = tl.minimum(first + tl.arange(0, PIECES)[None, :] * PIECE, K - PIECE)
        prefetch_weights(row + pieces)
        if GATED:
            prefetch_weights(up_row + pieces)
    scale = scales_of(scales, n, N, HAS_SCALES)
    scale_up = scales_of(scales + N, n, N, HAS_SCALES) if GATED else scale
    wait_for_inputs(OVERLAPS)

    value_row = x + tl.minimum(m, rows - 1)[:, None] * K
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    product_up = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        value = tl.trans(columns(value_row, k, K, EVEN))
        product = tl.dot(columns(row, k, K, EVEN).to(value.dtype), value, product, input_precision="ieee")
        if GATED:
            product_up = tl.dot(columns(up_row, k, K, EVEN).to(value.dtype), value, product_up, input_precision="ieee")

    if SPLIT:
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        stride = tl.num_programs(0) * BLOCK_N * BLOCK_M
        here = partial + tile * BLOCK_N * BLOCK_M + inner
        tl.store(here + part * stride, product)
        tl.debug_barrier()  # one thread announces what all have written
        if tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == tl.num_programs(1) - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in range(tl.num_programs(1)):
                total += tl.load(here + other * stride, cache_modifier=".cg")
            tl.store(arrivals + tile, 0)
            finish(total, product_up, scale, scale_up, bias, out, n, m, rows, N, HAS_BIAS, GATED)
    else:
        finish(product, product_up, scale, scale_up, bias, out, n, m, rows, N, HAS_BIAS, GATED)


class FewRowsLinear:
    """`ops.Linear` with `tunings` by the most rows that each serves.

    x and weights are contiguous. Not for use on several streams at once, whose programs would count each other's parts.
    """

    def __init__(self, tunings: Mapping[int, LinearTuning], multiprocessors: int, *, overlaps: bool = False) -> None:
        self._tunings = tunings
        self._multiprocessors = multiprocessors
        self._overlaps = overlaps
        self._arrivals: dict[torch.device, torch.Tensor] = {}

    def linear(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool = False) -> torch.Tensor:
        """See `ops.Linear`. More rows than the largest tile takes are computed part by part."""
        out = torch.empty(x.shape[0], weight.shape[0] // (2 if gated else 1), dtype=x.dtype, device=x.device)
        most = max(self._tunings)
        if x.shape[0] <= most:
            self._launch(x, weight, bias, gated, out)
            return out
        for part, place in zip(torch.split(x, most), torch.split(out, most), strict=True):
            self._launch(part, weight, bias, gated, place)
        return out

    def _launch(
        self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool, out: torch.Tensor
    ) -> None:
        values, scales = kept(weight)
        (rows, depth), width = x.shape, out.shape[1]
        most_rows = min(most for most in self._tunings if most >= rows)
        tuning = self._tunings[most_rows]
        # Gated programs read two weight rows for each output: half the outputs keep the same bytes in flight.
        block_n = max(16, tuning.block_n // (2 if gated else 1))
        tiles, steps = triton.cdiv(width, block_n), triton.cdiv(depth, tuning.block_k)
        parts = 1 if gated else split(tiles, steps, self._multiprocessors, tuning.alone)
        is_split = parts > 1
        partial = torch.empty(parts * tiles * block_n * most_rows, device=x.device) if is_split else out
        piece = PREFETCHED_BYTES // values.itemsize
        pieces = max(1, tuning.warps * 32 // block_n)
        per_part = triton.cdiv(steps, parts) * tuning.block_k
        few_rows_kernel[(tiles, parts)](
            x,
            values,
            x if scales is None else scales,
            x if bias is None else bias,
            out,
            partial,
            self._counters(x.device) if is_split else out,
            rows,
            width,
            depth,
            per_part,
            HAS_SCALES=scales is not None,
            HAS_BIAS=bias is not None,
            GATED=gated,
            SPLIT=is_split,
            EVEN=depth % tuning.block_k == 0,
            BLOCK_M=most_rows,
            BLOCK_N=block_n,
            BLOCK_K=tuning.block_k,
            PIECES=pieces if depth % piece == 0 and pieces * piece <= per_part else 0,
            PIECE=piece,
            num_warps=tuning.warps,
            num_stages=tuning.stages,
            **launch_options(self._overlaps),
        )

    def _counters(self, device: torch.device) -> torch.Tensor:
        """A zero for each tile of a product that is split: there are at most CROWDING times the multiprocessors."""
        if device not in self._arrivals:
            count = int(CROWDING * self._multiprocessors)
            self._arrivals[device] = torch.zeros(count, dtype=torch.int32, device=device)
        return self._arrivals[device]


def split(tiles: int, steps: int, multiprocessors: int, alone: bool = False) -> int:
    """Into how many parts the `steps` of each tile are divided: a power of two; of programs that are `alone` on their
    multiprocessors as many as run in one round, since a second one would take as long again."""
    if alone:
        most = max(1, min(multiprocessors // tiles, steps // LEAST_DEPTH))
        return -(-steps // -(-steps // most))  # none without a step
    parts = 1
    while 2 * parts * tiles <= CROWDING * multiprocessors and steps >= 2 * parts * LEAST_DEPTH:
        parts *= 2
    return parts
