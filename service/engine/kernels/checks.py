"""What works row by row, against torch in fp32: norm, gate, rotation with the write to the cache, and places."""

from dataclasses import fields

import torch

from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.candidate import Disagreement, ServedShapes, require_close
from service.engine.kernels.ops import Ops
from service.engine.steps.slots import Slots

MOST_POSITIONS = 131_072
"""Longer tables of angles are read alike and cost memory."""
MANY_ROWS = 130
"""More than a program takes of what works row by row, and no multiple of it."""
EPS = 1e-5
QUIET = EPS**0.5
"""Spread of values whose mean square is EPS: there a norm without it is wrong."""


def check_add_rms_norm(ops: Ops, shapes: ServedShapes) -> None:
    """Few and many rows, loud and quiet ones, with and without a residual."""
    weight = shapes.random(shapes.config.hidden_size) + 1
    for rows, has_residual in ((1, True), (5, False), (MANY_ROWS, True)):
        x = shapes.random(rows, shapes.config.hidden_size, spread=1.0 if has_residual else QUIET)
        residual = shapes.random(rows + 1, shapes.config.hidden_size)[1:] if has_residual else None
        normed, total = ops.add_rms_norm(x, residual, weight, EPS)
        wide = None if residual is None else residual.float()
        expected, expected_total = torch_ops.add_rms_norm(x.float(), wide, weight.float(), EPS)
        require_close("add_rms_norm", normed, expected, shapes.dtype)
        require_close("add_rms_norm's residual", total, expected_total, shapes.dtype)


def check_silu_mul(ops: Ops, shapes: ServedShapes) -> None:
    """One, few and many rows."""
    for rows in (1, 37, MANY_ROWS):
        gate_up = shapes.random(rows, 2 * shapes.config.intermediate_size)
        require_close("silu_mul", ops.silu_mul(gate_up), torch_ops.silu_mul(gate_up.float()), shapes.dtype)


def check_rotate_and_cache(ops: Ops, shapes: ServedShapes) -> None:
    """Rotated heads and both caches, padding rows that share block 0 included; nothing else may be written."""
    for rows in (1, MANY_ROWS):
        _check_rotation(ops, shapes, rows)


def _check_rotation(ops: Ops, shapes: ServedShapes, rows: int) -> None:
    """Rows at positions up to the last, in places all over the cache, and two of padding."""
    c, device = shapes.config, shapes.device
    last = min(c.max_positions, MOST_POSITIONS) - 1
    positions = torch.linspace(last, 0, rows).round().long()
    blocks = 2 + -(-rows // shapes.block_size)
    places = torch.randperm((blocks - 1) * shapes.block_size, generator=torch.Generator().manual_seed(rows))[:rows]
    positions, places = (torch.cat((t, t.new_zeros(2))).to(device) for t in (positions, places + shapes.block_size))
    cos, sin = angles_of(shapes, last + 1)
    qkv = shapes.random(rows, c.query_size + 2 * c.kv_size)
    qkv = torch.cat((qkv, qkv[:1], qkv[:1]))  # the padding: the same values to the same place
    cache = torch.full((2, blocks, shapes.block_size, c.num_kv_heads, c.head_dim), 3.0, device=device)
    expected, expected_cache = qkv.float().clone(), cache.clone()
    torch_ops.rotate_and_cache(expected, cos.float(), sin.float(), positions, places, *expected_cache)
    cache = cache.to(shapes.dtype)
    ops.rotate_and_cache(qkv, cos, sin, positions, places, *cache)
    require_close("rotate_and_cache", qkv, expected, shapes.dtype)
    require_close("rotate_and_cache's cache", cache.flatten(0, 2), expected_cache.flatten(0, 2), shapes.dtype)


def angles_of(shapes: ServedShapes, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of so many positions, as a model has them."""
    frequencies = 1.0 / 10_000 ** torch.linspace(0, 1, shapes.config.head_dim // 2)
    angles = torch.outer(torch.arange(float(positions)), frequencies).to(shapes.device)
    cos, sin = (torch.cat((t, t), dim=-1).to(shapes.dtype) for t in (angles.cos(), angles.sin()))
    return cos, sin


def check_locate(ops: Ops, shapes: ServedShapes) -> None:
    """Slots in any order at positions in any block of their tables, and two rows of padding."""
    width = 9
    slots = Slots(MANY_ROWS, width, 2, shapes.device)
    number = torch.arange(MANY_ROWS, device=shapes.device)
    slots.tokens[:-1], slots.positions[:-1] = number + 7, (number * 5) % (width * shapes.block_size)
    slots.tables[:-1] = (number[:, None] * width + torch.arange(width, device=shapes.device)).flip(0).int() + 1
    for rows in (1, MANY_ROWS):
        numbers = torch.cat((number.flip(0)[:rows], number.new_full((2,), slots.spare)))
        found, expected = (each(slots, numbers, shapes.block_size) for each in (ops.locate, torch_ops.locate))
        pairs = ((getattr(found, f.name), getattr(expected, f.name)) for f in fields(DecodeInputs))
        if not all(mine.dtype == other.dtype and torch.equal(mine, other) for mine, other in pairs):
            raise Disagreement(f"locate found other places than torch for {rows} rows")
