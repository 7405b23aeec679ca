"""What a kernel is held against: random data of the served shapes through it and through torch in fp32.

The measure is the worst row's ||result - reference|| / ||reference||; NaN never passes. Caches hold NaN wherever no
sequence of the batch has written, so that a stray read shows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from service.engine.base import SamplingParams
from service.engine.config import ModelConfig
from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeBatch, DecodeInputs
from service.engine.kernels.ops import Ops
from service.engine.kernels.trials import NO_TRIALS, Trials
from service.engine.slots import Slots

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}
"""Some units of each type's rounding (2^-9, 2^-12, 2^-24), which sums of thousands of products do not exceed."""
MOST_WEIGHT_ROWS = 32_768
"""The vocabulary's matrix is checked on its first rows: the others are handled alike and cost memory."""
MOST_POSITIONS = 131_072
"""Longer tables of angles are read alike and cost memory."""
MANY_ROWS = 130
"""More than any tile of rows, and no multiple of one."""
LONG = 6000
"""Tokens of one sequence: pieces enough for several turns of any loop that merges them."""
EPS = 1e-5
QUIET = EPS**0.5
"""Spread of values whose mean square is EPS: there a norm without it is wrong."""


class Disagreement(Exception):
    """A kernel's result is not torch's."""


@dataclass(frozen=True, slots=True)
class ServedShapes:
    """The model, cache layout, type and device that the kernels will meet; and what is noted of their trials."""

    config: ModelConfig
    block_size: int
    dtype: torch.dtype
    device: torch.device
    trials: Trials = NO_TRIALS

    def random(self, *shape: int, spread: float = 1.0) -> torch.Tensor:
        """Normal numbers of the served type; a fixed seed per shape, so that a verdict is repeatable."""
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator, device=self.device).mul_(spread).to(self.dtype)

    def whole(self, values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Integers on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that wants to replace fields of `Ops`. `check` gets the torch set with this kernel in it alone.

    `check` raises Disagreement when results differ, and may raise anything else a broken kernel makes it raise.
    """

    name: str
    fields: dict[str, Any]
    check: Callable[[Ops, ServedShapes], None]


def require_close(name: str, result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises Disagreement when a row of `result` [T, ...] is farther from `reference` than `dtype` explains."""
    if result.shape != reference.shape:
        raise Disagreement(f"{name} is of shape {list(result.shape)}, not {list(reference.shape)}")
    difference = (result.double() - reference.double()).flatten(1).norm(dim=1)
    error = (difference / reference.double().flatten(1).norm(dim=1).clamp_min(1e-30)).nan_to_num(torch.inf).max().item()
    if not error <= TOLERANCE[dtype]:
        raise Disagreement(f"{name} is off by {error:.1e} (at most {TOLERANCE[dtype]:.0e})")


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
    angles = torch.outer(torch.arange(last + 1.0), 1.0 / 10_000 ** torch.linspace(0, 1, c.head_dim // 2)).to(device)
    cos, sin = (torch.cat((t, t), dim=-1).to(shapes.dtype) for t in (angles.cos(), angles.sin()))
    qkv = shapes.random(rows, c.query_size + 2 * c.kv_size)
    qkv = torch.cat((qkv, qkv[:1], qkv[:1]))  # the padding: the same values to the same place
    cache = torch.full((2, blocks, shapes.block_size, c.num_kv_heads, c.head_dim), 3.0, device=device)
    expected, expected_cache = qkv.float().clone(), cache.clone()
    torch_ops.rotate_and_cache(expected, cos.float(), sin.float(), positions, places, *expected_cache)
    cache = cache.to(shapes.dtype)
    ops.rotate_and_cache(qkv, cos, sin, positions, places, *cache)
    require_close("rotate_and_cache", qkv, expected, shapes.dtype)
    require_close("rotate_and_cache's cache", cache.flatten(0, 2), expected_cache.flatten(0, 2), shapes.dtype)


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


def check_decode_attention(ops: Ops, shapes: ServedShapes) -> None:
    """One long sequence, several of very unequal lengths, and a batch of many short ones."""
    size = shapes.block_size
    unequal = [1, 17, size, size + 1, 2 * size - 1, 1500, 1, 300, 2, 900]
    for lengths in ([LONG], unequal, [1 + 5 * row % (2 * size + 1) for row in range(33)]):
        keep_in_model = [min(n, shapes.config.max_positions) for n in lengths]
        q, k_cache, v_cache, batch = decode_problem(shapes, keep_in_model)
        planned = ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, k_cache)
        scale = shapes.config.head_dim**-0.5
        result = ops.decode_attention(q, k_cache, v_cache, planned, scale)
        expected = torch_ops.decode_attention(q.float(), k_cache.float(), v_cache.float(), batch, scale)
        require_close("decode_attention", result, expected, shapes.dtype)


def decode_problem(
    shapes: ServedShapes, lengths: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, DecodeBatch]:
    """q (a view of a fused projection), both caches and the batch of sequences of `lengths` in shuffled blocks."""
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
    fused = shapes.random(rows, c.num_heads + 2 * c.num_kv_heads, c.head_dim)
    batch = DecodeBatch(tables.to(shapes.device), slots.to(shapes.device), shapes.whole(lengths, torch.int32))
    return fused[:, : c.num_heads], cache[0], cache[1], batch


def check_linear(ops: Ops, shapes: ServedShapes, rows: Sequence[int]) -> None:
    """Every matrix of the model, gated where the model gates, and with a bias if any of them has one."""
    for width, depth, gated in matrices(shapes.config):
        weight = shapes.random(width, depth, spread=depth**-0.5)
        x = shapes.random(max(rows), depth)
        for bias in _biases(shapes, width):
            expected = _linear(x.float(), weight, bias, gated)
            for count in rows:
                name = f"a {width} x {depth} product of {count} rows"
                require_close(name, ops.linear(x[:count], weight, bias, gated), expected[:count], shapes.dtype)


def check_norm_linear(ops: Ops, shapes: ServedShapes) -> None:
    """One row of the matrices that a norm precedes: QKV also without a residual, as in the first layer, and quiet; with
    biases as in `check_linear`."""
    qkv, _, gate_up, *_ = matrices(shapes.config)
    for (width, depth, gated), has_residual in ((qkv, False), (qkv, True), (gate_up, True)):
        weight = shapes.random(width, depth, spread=depth**-0.5)
        for bias in _biases(shapes, width):
            _check_norm_linear(ops, shapes, weight, bias, gated=gated, has_residual=has_residual)


def _check_norm_linear(
    ops: Ops, shapes: ServedShapes, weight: torch.Tensor, bias: torch.Tensor | None, *, gated: bool, has_residual: bool
) -> None:
    hidden = shapes.config.hidden_size
    norm_weight = shapes.random(hidden) + 1
    residual = shapes.random(2, hidden)[1:] if has_residual else None
    x = shapes.random(1, hidden, spread=1.0 if has_residual else QUIET)
    result, total = ops.norm_linear(x, residual, norm_weight, EPS, weight, bias, gated)
    wide = None if residual is None else residual.float()
    normed, expected_total = torch_ops.add_rms_norm(x.float(), wide, norm_weight.float(), EPS)
    require_close("norm_linear", result, _linear(normed, weight, bias, gated), shapes.dtype)
    require_close("norm_linear's residual", total, expected_total, shapes.dtype)


def _biases(shapes: ServedShapes, width: int) -> list[torch.Tensor | None]:
    c = shapes.config
    return [None, shapes.random(width)] if c.qkv_bias or c.o_bias or c.mlp_bias else [None]


def matrices(c: ModelConfig, most_rows: int = MOST_WEIGHT_ROWS) -> list[tuple[int, int, bool]]:
    """(rows, columns, gated) of each weight matrix: QKV, output, gate and up, down, and the head's first rows."""
    return [
        (c.query_size + 2 * c.kv_size, c.hidden_size, False),
        (c.hidden_size, c.query_size, False),
        (2 * c.intermediate_size, c.hidden_size, True),
        (c.hidden_size, c.intermediate_size, False),
        (min(c.vocab_size, most_rows), c.hidden_size, False),
    ]


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gated: bool) -> torch.Tensor:
    product = torch.nn.functional.linear(x, weight.float(), None if bias is None else bias.float())
    return torch_ops.silu_mul(product) if gated else product


SAMPLED = (
    SamplingParams(temperature=0.0, repetition_penalty=2.0),
    SamplingParams(seed=1),
    SamplingParams(top_k=3, top_p=1.0, temperature=2.0, seed=2),
    SamplingParams(top_k=40, top_p=0.5, seed=3),
    SamplingParams(top_k=0, top_p=0.3, seed=4),
    SamplingParams(top_k=0, top_p=0.9, temperature=0.5, seed=5),
    SamplingParams(top_k=0, top_p=1.0, repetition_penalty=1.5, seed=6),
    SamplingParams(top_k=100, top_p=1.0, temperature=10.0, seed=7),
    SamplingParams(top_k=100, top_p=0.5, temperature=3.0, repetition_penalty=0.8, seed=8),
    SamplingParams(top_k=0, top_p=0.5, temperature=20.0, seed=-9),
)
"""Every method and both ways through the kernel that filters. Bounds bite: many likely tokens lie beyond each."""
DRAWS = 10
"""Rows for each of them, all of other logits: a wrong bound changes every third draw or so."""


def check_sample(ops: Ops, shapes: ServedShapes) -> None:
    """The very tokens that torch draws, of logits of the served type, about half of them with the best near zero; slots
    in another order than rows, which advance as torch has them advance; and two rows of padding."""
    vocab, params, device = shapes.config.vocab_size, SAMPLED * DRAWS, shapes.device
    count = len(params)
    logits = shapes.random(count + 2, vocab, spread=3.0)
    logits[count // 2 :] -= logits.max()
    seen = torch.arange(vocab, device=device) % 3 == 0
    mine, torchs = (sampling_slots(params, seen.repeat(count, 1), torch.arange(count) + 99) for _ in range(2))
    numbers = shapes.whole([*reversed(range(count)), mine.spare, mine.spare])
    methods = mine.methods(list(range(count)))
    drawn = ops.sample(logits, mine, numbers, methods)
    # A few rows at a time: torch sorts them, which takes ten times the memory of their logits.
    parts = zip(*(torch.split(whole, len(SAMPLED)) for whole in (logits, numbers)), strict=True)
    expected = torch.cat([torch_ops.sample(part, torchs, rows, methods) for part, rows in parts])
    wrong = (drawn != expected)[:count].nonzero().flatten().tolist()
    if wrong:
        raise Disagreement(f"sample drew other tokens than torch in {len(wrong)} of {count} rows, first {wrong[0]}")
    states = ((s.tokens[:count], s.positions, s.parameters.seen[:count]) for s in (mine, torchs))
    if not all(torch.equal(one, other) for one, other in zip(*states, strict=True)):
        raise Disagreement("sample left the slots otherwise than torch")


def sampling_slots(params: Sequence[SamplingParams], seen: torch.Tensor, positions: torch.Tensor) -> Slots:
    """A slot for each of `params`, with the tokens that were `seen` [N, vocab] and the last one's place [N]."""
    slots = Slots(len(params), 1, seen.shape[1], seen.device)
    for number, each in enumerate(params):
        slots.set_parameters(number, each)
    slots.positions[: len(params)] = positions.to(seen.device)
    slots.parameters.seen[: len(params)] = seen
    return slots
