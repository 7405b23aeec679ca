"""Weight-streaming product of 2 to 256 rows, where a matmul is still bound by reading the weights, or nearly.

The transposed product: weights are the tall operand of the tensor core, the rows, padded, the narrow one. Every program
reads all rows, from the L2 cache, so that a tile must be taller than the rows are many for the weights to set the pace.
Tall tiles are few: then several programs share one, each a part of its columns, and the last one to finish adds up.
So they do with tiles that are left over when all of the GPU has had one.
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
def finish(product, tile, read, scale, bias, out, rows, N, HAS_BIAS: tl.constexpr, GATED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scales, bias and gate of a tile of the weight rows `read`, which is then stored transposed."""
    BLOCK_N: tl.constexpr = product.shape[0]
    BLOCK_M: tl.constexpr = product.shape[1]
    OUTPUTS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    product *= scale[:, None]
    if HAS_BIAS:
        product += tl.load(bias + read).to(tl.float32)[:, None]
    if GATED:
        product, up = gate_and_up(product, BLOCK_N, BLOCK_M)
        product *= tl.sigmoid(product) * up
    n, m = tile * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, BLOCK_M)
    stored = (n < N)[:, None] & (m < rows)[None, :]
    tl.store(out + m[None, :] * N + n[:, None], product.to(out.dtype.element_ty), mask=stored)


@triton.jit
def columns(pointers, k, K, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns k of each row; zeros from K on."""
    if EVEN:
        return tl.load(pointers + k[None, :])
    return tl.load(pointers + k[None, :], mask=(k < K)[None, :], other=0.0)


@triton.jit(do_not_specialize=["rows", "whole", "parts"])
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
    whole: int,
    parts: int,
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
    """One program for each of the `whole` tiles of weight rows that come first; of the others, with SPLIT, one for each
    of their `parts`: `depth` columns, a multiple of BLOCK_K.

    N: outputs of a row, of which each has two weight rows with GATED. EVEN: K is a multiple of BLOCK_K. PIECES of PIECE
    columns of each row are prefetched, none for 0. `arrivals` counts the parts that are done with each tile; it is zero
    before the launch, and again after it.
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
    value_row = x + tl.minimum(m, rows - 1)[:, None] * K
    product = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        value = tl.trans(columns(value_row, k, K, EVEN))
        product = tl.dot(columns(row, k, K, EVEN).to(value.dtype), value, product, input_precision="ieee")

    if SPLIT and program >= whole:
        counter = arrivals + tile - whole
        inner = tl.arange(0, BLOCK_N)[:, None] * BLOCK_M + m[None, :]
        here = partial + (tile - whole) * parts * BLOCK_N * BLOCK_M + inner
        tl.store(here + part * BLOCK_N * BLOCK_M, product)
        tl.debug_barrier()  # one thread announces what all have written
        if tl.atomic_add(counter, 1, sem="acq_rel") == parts - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for other in range(parts):
                total += tl.load(here + other * BLOCK_N * BLOCK_M, cache_modifier=".cg")
            tl.store(counter, 0)
            finish(total, tile, read, scale, bias, out, rows, N, HAS_BIAS, GATED)
    else:
        finish(product, tile, read, scale, bias, out, rows, N, HAS_BIAS, GATED)


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
        block_n, block_k = tuning.block_n, tuning.block_k
        tiles, steps = triton.cdiv(weight.shape[0], block_n), triton.cdiv(depth, block_k)
        whole, parts = split(tiles, steps, self._multiprocessors, tuning.alone)
        programs = whole + (tiles - whole) * parts
        is_split = parts > 1
        partial = torch.empty((programs - whole) * block_n * most_rows, device=x.device) if is_split else out
        piece = PREFETCHED_BYTES // values.itemsize
        pieces = max(1, tuning.warps * 32 // block_n)
        few_rows_kernel[(programs,)](
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
            whole,
            parts,
            triton.cdiv(steps, parts) * block_k,
            HAS_SCALES=scales is not None,
            HAS_BIAS=bias is not None,
            GATED=gated,
            SPLIT=is_split,
            EVEN=depth % block_k == 0,
            BLOCK_M=most_rows,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            PIECES=pieces if depth % piece == 0 else 0,
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


def split(tiles: int, steps: int, multiprocessors: int, alone: bool = False) -> tuple[int, int]:
    """How many tiles are computed as a whole, by a program each, and into how many parts the `steps` of each other one
    are divided: either all tiles are, or none, or those that a first round of tiles that are `alone` on their
    multiprocessors leaves over, since another round would take as long again."""
    if alone:
        whole = multiprocessors if multiprocessors < tiles < 2 * multiprocessors else 0
        most = max(1, min(multiprocessors // (tiles - whole), steps // LEAST_DEPTH))
        parts = -(-steps // -(-steps // most))  # none without a step
        return (whole if parts > 1 else tiles), parts
    parts = 1
    while 2 * parts * tiles <= CROWDING * multiprocessors and steps >= 2 * parts * LEAST_DEPTH:
        parts *= 2
    return (0 if parts > 1 else tiles), parts
