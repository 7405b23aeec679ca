"""Decode attention against torch in fp32. Caches hold NaN wherever no sequence of the batch has written, so that a
stray read shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from service.engine.config import ModelConfig
from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.candidate import Disagreement, ServedShapes, require_close
from service.engine.kernels.checks import angles_of
from service.engine.kernels.ops import Angles, Caches, Heads, Ops

LONG = 6000
"""Tokens of one sequence: pieces enough for several turns of any loop that merges them."""


def check_decode_attention(ops: Ops, shapes: ServedShapes) -> None:
    """One long sequence, several of very unequal lengths, and a batch of many short ones."""
    scale = shapes.config.head_dim**-0.5
    for lengths in _batches(shapes):
        qkv, k_cache, v_cache, batch = decode_problem(shapes, lengths)
        q = Heads.of(qkv, shapes.config).q
        planned = ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, k_cache)
        result = ops.decode_attention(q, k_cache, v_cache, planned, scale)
        expected = torch_ops.decode_attention(q.float(), k_cache.float(), v_cache.float(), batch, scale)
        require_close("decode_attention", result, expected, shapes.dtype)


def check_rotating_attention(ops: Ops, shapes: ServedShapes) -> None:
    """The same of heads that are still to be rotated; and nothing but the new keys and values may be written."""
    name = "rotating_attention"
    for lengths in _batches(shapes):
        problem = RotatedDecode.of(shapes, lengths)
        for cache in problem.caches:  # of thousands of tokens, one that is taken from there would not show otherwise
            cache.flatten(0, 1)[problem.places] = torch.nan
        expected, written = _expected(problem)
        require_close(name, problem.planned(ops).attend(ops), expected, shapes.dtype)
        for cache, due in zip(problem.caches, written, strict=True):
            mine, theirs = cache.flatten(0, 1), due.flatten(0, 1)
            require_close(f"{name}'s cache", mine[problem.places], theirs[problem.places], shapes.dtype)
            mine[problem.places] = theirs[problem.places]
            if not torch.equal(mine.nan_to_num(7.0), theirs.nan_to_num(7.0)):
                raise Disagreement(f"{name} wrote where nothing new is kept")


def _expected(problem: "RotatedDecode") -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The result in fp32, of heads that are rotated in fp32 and rounded once, as kernels do it; and the caches then."""
    dtype = problem.qkv.dtype
    wide, *caches = (each.to(torch.float32, copy=True) for each in (problem.qkv, *problem.caches))
    cos, sin = (each.float() for each in problem.angles)
    torch_ops.rotate_and_cache(wide, cos, sin, problem.positions, problem.places, caches[0], caches[1])
    written = [cache.to(dtype) for cache in caches]
    q = Heads.of(wide.to(dtype), problem.config).q.float()
    keys, values = (cache.float() for cache in written)
    return torch_ops.decode_attention(q, keys, values, problem.batch, problem.scale), written


def _batches(shapes: ServedShapes) -> Iterator[list[int]]:
    """Lengths of sequences that are decoded together."""
    size = shapes.block_size
    unequal = [1, 17, size, size + 1, 2 * size - 1, 1500, 1, 300, 2, 900]
    for lengths in ([LONG], unequal, [1 + 5 * row % (2 * size + 1) for row in range(33)]):
        yield [min(n, shapes.config.max_positions) for n in lengths]


def decode_problem(
    shapes: ServedShapes, lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecodeBatch]:
    """A fused projection, both caches and the batch of sequences of `lengths` in shuffled blocks."""
    c, size = shapes.config, shapes.block_size
    rows, width = len(lengths), -(-max(lengths) // size)
    order = torch.randperm(rows * width, generator=torch.Generator().manual_seed(0)).view(rows, width) + 1
    slots = torch.arange(rows - 1, -1, -1)
    tables = torch.zeros(rows + 1, width, dtype=torch.int32)
    cache = torch.full((2, rows * width + 1, size, c.num_kv_heads, c.head_dim), torch.nan)
    cache = cache.to(shapes.device, shapes.dtype)
    for row, length in enumerate(lengths):
        used = -(-length // size)
        tables[slots[row], :used] = order[row, :used].int()
        held = shapes.random(2, length, c.num_kv_heads, c.head_dim)
        places = (order[row, :used, None] * size + torch.arange(size)).flatten()[:length].to(shapes.device)
        cache.flatten(1, 2).index_copy_(1, places, held)
    qkv = shapes.random(rows, c.query_size + 2 * c.kv_size)
    batch = DecodeBatch(tables.to(shapes.device), slots.to(shapes.device), shapes.whole(lengths, torch.int32))
    return qkv, cache[0], cache[1], batch


@dataclass(frozen=True, slots=True)
class RotatedDecode:
    """The attention of one layer of a decode, from the fused projection on."""

    config: ModelConfig
    qkv: torch.Tensor
    angles: Angles
    caches: Caches
    positions: torch.Tensor  # int64 [T], the last of each sequence
    places: torch.Tensor  # int64 [T]
    batch: DecodeBatch

    @classmethod
    def of(cls, shapes: ServedShapes, lengths: Sequence[int]) -> Self:
        """For sequences of `lengths`."""
        qkv, k_cache, v_cache, batch = decode_problem(shapes, lengths)
        positions, size = batch.lengths.long() - 1, shapes.block_size
        places = batch.block_tables[batch.slots, positions // size].long() * size + positions % size
        return cls(shapes.config, qkv, angles_of(shapes, max(lengths)), (k_cache, v_cache), positions, places, batch)

    @property
    def scale(self) -> float:
        return float(self.config.head_dim**-0.5)

    def planned(self, ops: Ops) -> Self:
        """Divided as `ops` have it, once for all layers."""
        batch = self.batch
        return replace(self, batch=ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, self.caches[0]))

    def attend(self, ops: Ops) -> torch.Tensor:
        """By an attention that rotates, if `ops` have one; else by two operations, of which the first is in place."""
        heads = Heads.of(self.qkv, self.config)
        if ops.rotating_attention is not None:
            return ops.rotating_attention(heads, self.angles, self.caches, self.batch, self.scale)
        ops.rotate_and_cache(self.qkv, *self.angles, self.positions, self.places, *self.caches)
        return ops.decode_attention(heads.q, *self.caches, self.batch, self.scale)
