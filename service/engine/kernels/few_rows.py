"""Weight-streaming product of 2 to 256 rows, where a matmul is still bound by reading the weights, or nearly.

The transposed product: weights are the tall operand of the tensor core, the rows, padded, the narrow one. Every program
reads all rows, from the L2 cache, so that a tile must be taller than the rows are many for the weights to set the pace.
Tall tiles are few: then several programs share one, each a part of its columns, and the last one to finish adds up.
So they do with tiles that are left over when all of the GPU has had one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import triton

from service.engine.kernels.few_rows_kernel import few_rows_kernel
from service.engine.kernels.ops import AddNorm, Affine, nothing
from service.engine.kernels.overlap import PREFETCHED_BYTES, launch_options
from service.engine.kernels.tuning import LinearTuning
from service.engine.quantization import Matrix, kept

LEAST_DEPTH = 4
"""Steps along K that a program is worth: fewer are over before its loads are under way."""
CROWDING = 1.25
"""Most programs per multiprocessor for the sake of which a product is split."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """The residual stream between two products of a chain; see `few_rows_kernel.add_residual`."""

    norm: AddNorm
    total: torch.Tensor  # [T, hidden]: the sum
    squares: torch.Tensor  # [tiles, rows of a tile]


class FewRowsLinear:
    """`ops.Linear` and `ops.Chain` with `tunings` by the most rows that each serves.

    `settles`: products with quantized weights are waited for step by step, which Triton's interpreter can't. x and
    weights are contiguous. More rows than the largest tile takes are computed part by part. Not for use on several
    streams at once, whose programs would count each other's parts.
    """

    def __init__(
        self,
        tunings: Mapping[int, LinearTuning],
        multiprocessors: int,
        *,
        overlaps: bool = False,
        settles: bool = False,
    ) -> None:
        self._tunings = tunings
        self._multiprocessors = multiprocessors
        self._overlaps = overlaps
        self._settles = settles
        self._arrivals: dict[torch.device, torch.Tensor] = {}

    def linear(self, x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool = False) -> torch.Tensor:
        """See `ops.Linear`."""
        out = _result(x, weight, gated)
        for rows in self._turns(x):
            self._launch(x[rows], Affine(weight, bias), gated, out[rows])
        return out

    def chain(
        self,
        x: torch.Tensor,
        first: Affine,
        norm: AddNorm,
        second: Affine,
        gated: bool = False,
        between: Callable[[], object] = nothing,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ops.Chain`. The norm takes no launch of its own."""
        out = _result(x, second.weight, gated)
        scaled, total = torch.empty_like(norm.residual), torch.empty_like(norm.residual)
        for rows in self._turns(x):
            most_rows = self._most_rows(x[rows])
            tiles = triton.cdiv(total.shape[1], self._tunings[most_rows].block_n)
            squares = torch.empty(tiles, most_rows, dtype=torch.float32, device=x.device)
            stream = _Stream(norm._replace(residual=norm.residual[rows]), total[rows], squares)
            self._launch(x[rows], first, False, scaled[rows], into=stream)
            between()
            self._launch(scaled[rows], second, gated, out[rows], out_of=stream)
        return out, total

    def _turns(self, x: torch.Tensor) -> Iterator[slice]:
        most = max(self._tunings)
        return (slice(first, first + most) for first in range(0, x.shape[0], most))

    def _most_rows(self, x: torch.Tensor) -> int:
        """Those of the tile."""
        return min(most for most in self._tunings if most >= x.shape[0])

    def _launch(
        self,
        x: torch.Tensor,
        affine: Affine,
        gated: bool,
        out: torch.Tensor,
        into: _Stream | None = None,
        out_of: _Stream | None = None,
    ) -> None:
        values, scales = kept(affine.weight)
        (rows, depth), width = x.shape, out.shape[1]
        most_rows = self._most_rows(x)
        tuning = self._tunings[most_rows]
        block_n, block_k = tuning.block_n, tuning.block_k
        tiles, steps = triton.cdiv(values.shape[0], block_n), triton.cdiv(depth, block_k)
        whole, parts = split(tiles, steps, self._multiprocessors, tuning.alone)
        programs = whole + (tiles - whole) * parts
        is_split = parts > 1
        partial = torch.empty((programs - whole) * block_n * most_rows, device=x.device) if is_split else out
        piece = PREFETCHED_BYTES // values.itemsize
        pieces = max(1, tuning.warps * 32 // block_n)
        stream = into or out_of
        normed_tiles = out_of.squares.shape[0] if out_of else 0
        few_rows_kernel[(programs,)](
            x,
            values,
            x if scales is None else scales,
            x if affine.bias is None else affine.bias,
            stream.norm.residual if stream else x,
            stream.norm.weight if stream else x,
            stream.total if stream else out,
            stream.squares if stream else out,
            out,
            partial,
            self._counters(x.device) if is_split else out,
            rows,
            width,
            depth,
            whole,
            parts,
            triton.cdiv(steps, parts) * block_k,
            stream.norm.eps if stream else 0.0,
            normed_tiles,
            HAS_SCALES=scales is not None,
            SETTLES=self._settles and scales is not None,
            HAS_BIAS=affine.bias is not None,
            GATED=gated,
            ADDS=into is not None,
            NORMED_TILES=triton.next_power_of_2(normed_tiles) if normed_tiles else 0,
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


def _result(x: torch.Tensor, weight: Matrix, gated: bool) -> torch.Tensor:
    return torch.empty(x.shape[0], weight.shape[0] // (2 if gated else 1), dtype=x.dtype, device=x.device)


def split(tiles: int, steps: int, multiprocessors: int, alone: bool = False) -> tuple[int, int]:
    """How many tiles are computed as a whole, by a program each, and into how many parts the `steps` of each other one
    are divided: either all tiles are, or none, or those that a first round of tiles that are `alone` on their
    multiprocessors leaves over, since another round would take as long again."""
    if alone:
        whole = multiprocessors if multiprocessors < tiles < 2 * multiprocessors else 0
        most = max(1, min(multiprocessors // (tiles - whole), steps // LEAST_DEPTH))
        parts = -(-steps // -(-steps // most))  # no part is without a step
        return (whole if parts > 1 else tiles), parts
    parts = 1
    while 2 * parts * tiles <= CROWDING * multiprocessors and steps >= 2 * parts * LEAST_DEPTH:
        parts *= 2
    return (0 if parts > 1 else tiles), parts
