"""Which products torch computes faster than our kernels, on this very GPU; and what is fused, but faster link by link:
chains of two products, and an attention that rotates.

No search: a kernel has one launch choice per tile of rows, from the table in `tuning`, and runs once against the
library for each matrix of the model. That takes some seconds, more on a slow GPU with quantized weights, and keeps a
choice that was made for another card, or without one, from costing time.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.checks import EPS
from service.engine.kernels.decode_check import RotatedDecode
from service.engine.kernels.linear_check import chained, matrices
from service.engine.kernels.ops import AddNorm, Affine, Ops, Product
from service.engine.kernels.stopwatch import Stopwatch, Work, seconds, sets_needed
from service.engine.quantization import Matrix

logger = logging.getLogger(__name__)

BUSY_SEQUENCES, BUSY_CONTEXT = 64, 512
"""Of a busy decode: how many, and tokens of each."""
LEAD = 1.02
"""What is ours keeps its place unless the other is ahead by this much: less is noise."""


@torch.inference_mode()
def race(ops: Ops, shapes: ServedShapes, stopwatch: Stopwatch = seconds) -> Ops:
    """`ops` with the products that torch wins in `outrun`, the chains that lose to their links in `parted`, and without
    an attention that rotates where it loses to the two one by one. Takes 3 GB of device memory for an 8B model."""
    torchs = replace(ops, one_row_linear=None, few_rows_linear=None, many_rows_linear=None, one_row_norm_linear=None)
    judged_at, lost = list(_rows(ops)), set()
    for width, depth, gated in matrices(shapes.config, shapes.config.vocab_size) if judged_at else []:
        weights = _weights(shapes, width, depth)
        for rows in judged_at:
            product = Product(rows, width, depth, gated)
            works = [_works(each, product, weights, shapes) for each in (ops, torchs)]
            if _is_beaten(works, shapes.device, stopwatch):
                lost.add(product)
    for product in sorted(lost):
        logger.info("torch computes a %s faster than our kernel", product)
    ops = replace(ops, outrun=frozenset(lost))
    ops = replace(ops, parted=frozenset(_parted(ops, shapes, stopwatch)))
    if ops.rotating_attention is not None and _is_beaten(_attentions(ops, shapes), shapes.device, stopwatch):
        logger.info("attention that rotates is slower than the two one by one")
        return replace(ops, rotating_attention=None)
    return ops


def _attentions(ops: Ops, shapes: ServedShapes) -> list[list[Work]]:
    """Those of a busy decode, that rotate and that do not."""
    context = min(BUSY_CONTEXT, shapes.config.max_positions)
    count = sets_needed(2 * BUSY_SEQUENCES * context * shapes.config.kv_size * shapes.dtype.itemsize, shapes.device)
    problems = [RotatedDecode.of(shapes, [context] * BUSY_SEQUENCES).planned(ops) for _ in range(count)]
    apart = replace(ops, rotating_attention=None)
    return [[partial(problem.attend, each) for problem in problems] for each in (ops, apart)]


def _parted(ops: Ops, shapes: ServedShapes, stopwatch: Stopwatch) -> Iterator[Product]:
    """The second products of chains that take longer than their links one by one."""
    links = replace(ops, few_rows_chain=None, many_rows_chain=None)
    has_chains = ops.few_rows_chain is not None or ops.many_rows_chain is not None
    for first, second in chained(shapes.config) if has_chains else []:
        pairs = [*zip(_weights(shapes, *first[:2]), _weights(shapes, *second[:2]), strict=False)]
        served = (rows for rows in ops.judged_rows if ops.chain_kernel(rows, *pairs[0], second[2]))
        for rows in served:
            works = [_chain_works(each, rows, pairs, second[2], shapes) for each in (ops, links)]
            if _is_beaten(works, shapes.device, stopwatch):
                product = Product(rows, *second)
                logger.info("a chain to a %s is slower than its links", product)
                yield product


def _chain_works(
    ops: Ops, rows: int, pairs: list[tuple[Matrix, Matrix]], gated: bool, shapes: ServedShapes
) -> list[Work]:
    x, residual = shapes.random(rows, pairs[0][0].shape[1]), shapes.random(rows, shapes.config.hidden_size)
    norm = AddNorm(residual, shapes.random(shapes.config.hidden_size), EPS)
    return [partial(ops.chain, x, Affine(a), norm, Affine(b), gated) for a, b in pairs]


def _rows(ops: Ops) -> Iterator[int]:
    """Those that each kernel is judged at; none of a kernel that does not serve."""
    if ops.one_row_linear is not None:
        yield 1
    if ops.few_rows_linear is not None:
        yield from ops.few_rows
    if ops.many_rows_linear is not None:
        yield from ops.many_rows


def _weights(shapes: ServedShapes, width: int, depth: int) -> list[Matrix]:
    """As many of one shape as do not fit the cache, where a decode never finds one either."""
    count = sets_needed(width * depth * shapes.matrix_itemsize, shapes.device)
    return [shapes.matrix(width, depth) for _ in range(count)]


def _works(ops: Ops, product: Product, weights: list[Matrix], shapes: ServedShapes) -> list[Work]:
    """The product with each of `weights`; of one row with the norm that goes before it in the model."""
    c, x, gated = shapes.config, shapes.random(product.rows, product.depth), product.gated
    has_norm = gated or product.width == c.query_size + 2 * c.kv_size
    if product.rows == 1 and has_norm:
        gain = shapes.random(product.depth)
        return [partial(ops.norm_linear, x, x, gain, EPS, weight, None, gated) for weight in weights]
    return [partial(ops.linear, x, weight, None, gated) for weight in weights]


def _is_beaten(works: list[list[Work]], device: torch.device, stopwatch: Stopwatch) -> bool:
    """Whether the second one is faster. Twice: who ran first may have run on a GPU that was still waking up."""
    return all(_loses(works, device, stopwatch) for _ in range(2))


def _loses(works: list[list[Work]], device: torch.device, stopwatch: Stopwatch) -> bool:
    ours, theirs = (stopwatch(each, device) for each in works)
    return theirs * LEAD < ours
