"""The work that decode kernels are timed on: each operation in the shapes that a decode of the model has."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from msgspec.structs import replace

from service.engine.defaults import MOST_BIASED
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.decode_check import RotatedDecode, decode_problem
from service.engine.kernels.linear_check import MatrixShape, chained, matrices
from service.engine.kernels.ops import AddNorm, Affine, Heads, Ops
from service.engine.kernels.sample_check import SAMPLED, sampling_slots
from service.engine.kernels.stopwatch import Work, sets_needed

EPS = 1e-5
DRAWS = {"few": SAMPLED[1], "flat": SAMPLED[9]}
"""Of a few likely tokens, as nearly always, and of a flat distribution, which the sampler has to search."""


@dataclass(frozen=True)
class Case:
    """`works(ops)` are the same work on one input set after the other; `size` counts the bytes one must move."""

    kernel: str
    shape: dict[str, object]
    size: int
    works: Callable[[Ops], list[Work]]


def cases(shapes: ServedShapes, *, tiny: bool) -> Iterator[Case]:
    """Small operations and products by rows; attention by rows and context; sampling by rows."""
    c = shapes.config
    for rows in (1, 3) if tiny else (1, 16, 64, 256):
        yield norm_case(shapes, rows)
        yield silu_case(shapes, rows)
        yield rope_case(shapes, rows)
        for draw, biased in product(DRAWS, (0, MOST_BIASED)):
            yield sample_case(shapes, rows, draw, biased)
    for width, depth, gated in matrices(c, c.vocab_size):
        for rows in (1, 3) if tiny else (1, 4, 16, 32, 64, 128, 192, 256):
            yield linear_case(shapes, rows, width, depth, gated)
    yield norm_linear_case(shapes)
    for first, second in chained(c):
        for rows in (3,) if tiny else (4, 16, 32, 64, 128, 256):
            yield chain_case(shapes, rows, first, second)
    batches = [[5, 40]] if tiny else [[512], [8192], [512] * 64, [4096] * 64, [512] * 256, [512] * 31 + [30_000]]
    for lengths in batches:
        yield attention_case(shapes, lengths)
        yield rotating_case(shapes, lengths)


def norm_case(shapes: ServedShapes, rows: int) -> Case:
    width = shapes.config.hidden_size
    size = 4 * rows * width * shapes.dtype.itemsize
    x, residual, weight = inputs(shapes, size, (rows, width)), shapes.random(rows, width), shapes.random(width)
    return Case(
        "add_rms_norm",
        {"rows": rows, "width": width},
        size,
        lambda ops: [lambda x=x: ops.add_rms_norm(x, residual, weight, EPS) for x in x],
    )


def silu_case(shapes: ServedShapes, rows: int) -> Case:
    width = shapes.config.intermediate_size
    size = 3 * rows * width * shapes.dtype.itemsize
    gate_up = inputs(shapes, size, (rows, 2 * width))
    return Case(
        "silu_mul", {"rows": rows, "width": width}, size, lambda ops: [lambda x=x: ops.silu_mul(x) for x in gate_up]
    )


def rope_case(shapes: ServedShapes, rows: int) -> Case:
    c = shapes.config
    width = c.query_size + 2 * c.kv_size
    size = 2 * rows * width * shapes.dtype.itemsize
    qkv = inputs(shapes, size, (rows, width))
    cache = shapes.random(2, rows + 1, shapes.block_size, c.num_kv_heads, c.head_dim)
    places = torch.arange(rows, device=shapes.device) * shapes.block_size + shapes.block_size
    cos, sin = torch.rand(2, c.max_positions, c.head_dim, device=shapes.device)

    def works(ops: Ops) -> list[Work]:
        return [lambda x=x: ops.rotate_and_cache(x, cos, sin, places % 512, places, cache[0], cache[1]) for x in qkv]

    return Case("rotate_and_cache", {"rows": rows, "heads": c.num_heads + 2 * c.num_kv_heads}, size, works)


def sample_case(shapes: ServedShapes, rows: int, draw: str, biased: int) -> Case:
    """One of `DRAWS`; in each row, as many tokens from one end of the vocabulary to the other are `biased`."""
    vocab = shapes.config.vocab_size
    params = replace(DRAWS[draw], logit_bias=tuple((vocab * place // biased, -1.0) for place in range(biased)))
    size = rows * vocab * (shapes.dtype.itemsize + 1)  # logits, and a byte of what was seen
    logits = inputs(shapes, size, (rows, vocab))
    seen = torch.zeros(rows, vocab, dtype=torch.bool, device=shapes.device)
    slots = sampling_slots([params] * rows, seen, torch.zeros(rows, dtype=torch.int64))
    numbers = torch.arange(rows, device=shapes.device)
    methods = slots.methods(numbers.tolist())
    return Case(
        "sample",
        {"rows": rows, "vocab": vocab, "draw": draw, "biased": biased},
        size,
        lambda ops: [lambda x=x: ops.sample(x, slots, numbers, methods) for x in logits],
    )


def linear_case(shapes: ServedShapes, rows: int, width: int, depth: int, gated: bool) -> Case:
    size, x = width * depth * shapes.matrix_itemsize, shapes.random(rows, depth)
    weights = [shapes.matrix(width, depth) for _ in range(sets_needed(size, shapes.device))]
    return Case(
        "linear",
        {"rows": rows, "width": width, "depth": depth, "gated": gated},
        size,
        lambda ops: [lambda w=w: ops.linear(x, w, None, gated) for w in weights],
    )


def norm_linear_case(shapes: ServedShapes) -> Case:
    width, depth = 2 * shapes.config.intermediate_size, shapes.config.hidden_size
    size, x, gain = width * depth * shapes.matrix_itemsize, shapes.random(1, depth), shapes.random(depth)
    weights = [shapes.matrix(width, depth) for _ in range(sets_needed(size, shapes.device))]
    return Case(
        "norm_linear",
        {"rows": 1, "width": width, "depth": depth, "gated": True},
        size,
        lambda ops: [lambda w=w: ops.norm_linear(x, x, gain, EPS, w, None, True) for w in weights],
    )


def chain_case(shapes: ServedShapes, rows: int, first: MatrixShape, second: MatrixShape) -> Case:
    hidden, depth, _ = first
    width, _, gated = second
    size = hidden * (depth + width) * shapes.matrix_itemsize
    x, norm = shapes.random(rows, depth), AddNorm(shapes.random(rows, hidden), shapes.random(hidden), EPS)
    pairs = [
        (Affine(shapes.matrix(hidden, depth)), Affine(shapes.matrix(width, hidden)))
        for _ in range(sets_needed(size, shapes.device))
    ]
    return Case(
        "chain",
        {"rows": rows, "depth": depth, "width": width, "gated": gated},
        size,
        lambda ops: [lambda a=a, b=b: ops.chain(x, a, norm, b, gated) for a, b in pairs],
    )


def attention_case(shapes: ServedShapes, lengths: list[int]) -> Case:
    c = shapes.config
    size = 2 * sum(lengths) * c.kv_size * shapes.dtype.itemsize
    problems = [decode_problem(shapes, lengths) for _ in range(min(4, sets_needed(size, shapes.device)))]

    def works(ops: Ops) -> list[Work]:
        # Planned once a step and used in every layer: not part of the time.
        planned = [
            (Heads.of(qkv, c).q, k, v, ops.plan_decode(batch.block_tables, batch.slots, batch.lengths, k))
            for qkv, k, v, batch in problems
        ]
        return [lambda p=p: ops.decode_attention(*p, c.head_dim**-0.5) for p in planned]

    return Case("decode_attention", batch_of(lengths), size, works)


def rotating_case(shapes: ServedShapes, lengths: list[int]) -> Case:
    """The same from the projection on, in one launch where there is an attention that rotates."""
    c = shapes.config
    size = (2 * sum(lengths) * c.kv_size + len(lengths) * (2 * c.query_size + 2 * c.kv_size)) * shapes.dtype.itemsize
    problems = [RotatedDecode.of(shapes, lengths) for _ in range(min(4, sets_needed(size, shapes.device)))]
    return Case(
        "rotating_attention",
        batch_of(lengths),
        size,
        lambda ops: [partial(problem.planned(ops).attend, ops) for problem in problems],
    )


def batch_of(lengths: list[int]) -> dict[str, object]:
    """What is told of a batch of sequences."""
    return {"rows": len(lengths), "longest": max(lengths), "tokens": sum(lengths)}


def inputs(shapes: ServedShapes, size: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """Input sets that together exceed the cache."""
    return [shapes.random(*shape) for _ in range(sets_needed(size, shapes.device))]
