"""Launch choices per GPU generation. Measured where `source` says so; the rest is the default, which fits every card.

A choice changes speed only, never a result beyond rounding; no search runs at start. `python -m tests.bench.kernels
--sweep` on a card prints its best ones.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """Tokens per tile, warps and pipeline stages of a program; programs in all per multiprocessor."""

    tile: int = 64
    warps: int = 4
    stages: int = 3
    programs_per_multiprocessor: int = 4


@dataclass(frozen=True, slots=True)
class LinearTuning:
    """Weight rows x columns that a program reads at a time, its warps, and loads in flight (pipeline stages)."""

    block_n: int
    block_k: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """All choices for one GPU generation and where they come from."""

    source: str
    attention: AttentionTuning = AttentionTuning()
    one_row: LinearTuning = LinearTuning(block_n=4, block_k=512, warps=4, stages=1)
    few_rows: LinearTuning = LinearTuning(block_n=32, block_k=128, warps=4, stages=3)
    few_rows_limit: int = 16
    skip: frozenset[str] = frozenset()  # kernels that lost to torch on this generation


DEFAULT = Tuning(source="default; not measured on this card")
"""Shared memory: few_rows 3 * (32 + 16) * 128 * 2 = 36 KiB, attention 3 * 2 * 64 * 128 * 2 = 96 KiB at head_dim 128."""

BY_CAPABILITY = {
    # 4 x 1024 with 8 warps was the best of 12 for all five matrices of the 8B model: 2.58-3.17 TB/s of 3.09 TB/s read.
    9: Tuning(
        source="one_row and attention measured on an H100 80GB",
        one_row=LinearTuning(block_n=4, block_k=1024, warps=8, stages=1),
        few_rows=LinearTuning(block_n=32, block_k=256, warps=4, stages=4),
    ),
    # Cards of 8.6 and 8.9 have 99 KiB of shared memory a block, 7.5 has 64: two stages leave room for both.
    8: Tuning(source="estimated from shared memory", attention=AttentionTuning(stages=2)),
    7: Tuning(
        source="estimated from shared memory and registers",
        attention=AttentionTuning(tile=32, stages=1),
        few_rows=LinearTuning(block_n=32, block_k=64, warps=4, stages=1),
    ),
}


def tuning_for(capability: tuple[int, int]) -> Tuning:
    """The choices for a CUDA compute capability (major, minor)."""
    return BY_CAPABILITY.get(capability[0], DEFAULT)
