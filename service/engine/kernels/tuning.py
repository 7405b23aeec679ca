"""Launch choices per GPU generation. Measured where `source` says so; the rest is the default, which fits every card.

A choice changes speed only, never a result beyond rounding; no search runs at start. `python -m tests.bench.kernels
--sweep` on a card prints its best ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from service.engine.defaults import Quantization


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """Tokens per tile, warps and pipeline stages of a program; programs in all per multiprocessor."""

    tile: int = 64
    warps: int = 4
    stages: int = 3
    programs_per_multiprocessor: int = 4


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """Weight rows x columns that a program reads at a time, its warps, loads in flight (pipeline stages), whether it
    leaves its multiprocessor room for no other, and the longest row in 16 bits that is read at once, whatever its
    columns: all of it is then under way before there are inputs."""

    block_n: int
    block_k: int
    warps: int
    stages: int
    alone: bool = False
    whole_row: int = 0


Tiles = Mapping[int, LinearTuning]
"""By the most rows that a tile takes, powers of two."""
FEW = 64
"""Rows of the tiles that serve wherever any does. The larger ones are proved, and fail, by themselves."""


def few_and_many(tiles: Tiles) -> tuple[Tiles, Tiles]:
    """Those of up to FEW rows, and the larger ones."""
    few = {rows: tile for rows, tile in tiles.items() if rows <= FEW}
    return few, {rows: tile for rows, tile in tiles.items() if rows > FEW}


ROWS = {
    16: LinearTuning(block_n=32, block_k=128, warps=4, stages=3),
    32: LinearTuning(block_n=64, block_k=64, warps=4, stages=3),
    64: LinearTuning(block_n=64, block_k=64, warps=4, stages=3),
    128: LinearTuning(block_n=64, block_k=64, warps=4, stages=3),
    256: LinearTuning(block_n=64, block_k=64, warps=8, stages=2),
}
"""In 16 bits each fits 99 KiB of shared memory, and those of FEW rows in fp32, too."""
INT8_ROWS = {
    16: LinearTuning(block_n=64, block_k=128, warps=4, stages=3),
    32: LinearTuning(block_n=64, block_k=128, warps=4, stages=3),
    64: LinearTuning(block_n=64, block_k=64, warps=4, stages=3),
    128: LinearTuning(block_n=64, block_k=64, warps=4, stages=3),
    256: LinearTuning(block_n=64, block_k=64, warps=8, stages=2),
}
"""Of quantized matrices."""


CHAINS = frozenset({"few_rows_chain", "many_rows_chain"})
"""The kernels that are `ops.Chain`s."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """All choices for one GPU generation and where they come from."""

    source: str
    attention: AttentionTuning = AttentionTuning()
    # Of chunks of prompts, eight tokens a row.
    chunks: AttentionTuning = AttentionTuning(tile=32, warps=8, stages=2, programs_per_multiprocessor=1)
    one_row: LinearTuning = LinearTuning(block_n=4, block_k=512, warps=4, stages=1)
    rows: Tiles = field(default_factory=lambda: dict(ROWS))
    int8_rows: Tiles = field(default_factory=lambda: dict(INT8_ROWS))
    overlaps: bool = False  # whether a kernel's start overlaps the end of the one before it
    settles: bool = False  # whether products with quantized weights are waited for step by step
    skip: frozenset[str] = frozenset()  # kernels that lost to torch on this generation, or do not fit it

    def tiles(self, quantization: Quantization) -> Tiles:
        """Those of products with matrices that are kept this way."""
        return self.int8_rows if quantization == "int8" else self.rows

    def for_dtype(self, dtype: torch.dtype) -> "Tuning":
        """fp32 goes without the tiles whose rows of activations, twice as wide, would not fit; fp16 without chains: a
        sum times a norm's gain may be beyond it before the norm is done."""
        if dtype == torch.float32:
            return replace(self, rows=few_and_many(self.rows)[0], int8_rows=few_and_many(self.int8_rows)[0])
        return replace(self, skip=self.skip | CHAINS) if dtype == torch.float16 else self


DEFAULT = Tuning(source="default; not measured on this card")
"""Shared memory: rows at most 2 * (64 + 256) * 64 * 2 = 80 KiB, int8_rows 2 * (64 + 256 * 2) * 64 = 72 KiB, attention
3 * 64 * 128 * 2 = 48 KiB at head_dim 128; as a rule it is a stage less than there are."""

BY_CAPABILITY = {
    # 4 x 1024 with 8 warps was the best of 12, none of which was longer, for all five matrices of the 8B model:
    # 2.58-3.17 TB/s of 3.09 TB/s read. Whole rows of its hidden size take no more registers, and have four times as
    # many bytes on their way.
    9: Tuning(
        source="one_row's tile and attention's measured on an H100 80GB, whole rows and the rest estimated",
        # Each has 64 KiB of KV on its way, three times what a multiprocessor's share of the bandwidth needs in flight:
        # two of them do, in one round, and leave fewer partial results than more of them would. With two stages, five
        # instead of three would find room on a multiprocessor, but none could load while it computes.
        attention=AttentionTuning(programs_per_multiprocessor=2),
        # 128 KiB of shared memory: one at a time.
        chunks=AttentionTuning(warps=8, programs_per_multiprocessor=1),
        one_row=LinearTuning(block_n=4, block_k=1024, warps=8, stages=1, whole_row=4096),
        rows={
            16: LinearTuning(block_n=32, block_k=256, warps=4, stages=4),
            32: LinearTuning(block_n=128, block_k=64, warps=4, stages=5),
            64: LinearTuning(block_n=128, block_k=64, warps=4, stages=4),
            128: LinearTuning(block_n=128, block_k=64, warps=8, stages=3),
            256: LinearTuning(block_n=128, block_k=64, warps=8, stages=4, alone=True),
        },
        int8_rows={
            16: LinearTuning(block_n=64, block_k=256, warps=4, stages=4),
            32: LinearTuning(block_n=128, block_k=128, warps=4, stages=4),
            64: LinearTuning(block_n=128, block_k=64, warps=4, stages=5),
            128: LinearTuning(block_n=128, block_k=64, warps=8, stages=4, alone=True),
            256: LinearTuning(block_n=128, block_k=64, warps=8, stages=4, alone=True),
        },
        overlaps=True,
        settles=True,
    ),
    # Cards of 8.6, 8.9 and 12.0 have 99 KiB of shared memory a block, 7.5 has 64.
    8: Tuning(source="estimated from shared memory", attention=AttentionTuning(tile=32)),
    7: Tuning(
        source="estimated from shared memory and registers",
        attention=AttentionTuning(tile=32, stages=1),
        rows={16: LinearTuning(block_n=32, block_k=64, warps=4, stages=1)},
        int8_rows={16: LinearTuning(block_n=32, block_k=64, warps=4, stages=1)},
        skip=frozenset({"chunk_attention"}),  # 80 KiB of shared memory
    ),
    10: Tuning(source="estimated from its predecessor", overlaps=True),
    12: Tuning(source="estimated from shared memory", attention=AttentionTuning(tile=32), overlaps=True),
}


def tuning_for(capability: tuple[int, int]) -> Tuning:
    """The choices for a CUDA compute capability (major, minor)."""
    return BY_CAPABILITY.get(capability[0], DEFAULT)
