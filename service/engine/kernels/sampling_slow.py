"""A filtered draw by passes over the whole vocabulary: exact for every distribution, about 0.3 ms instead of 0.02.

Needed when the kept tokens may reach beyond the best groups: a large top_k, or a flat distribution under top_p alone.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl

from service.engine.kernels.sampling_math import NOTHING, gumbel, order_of, penalized, scale_down

BLOCK = tl.constexpr(4096)


@triton.jit
def draw_from_vocabulary(logits, marks, bias, factor, often, once, heat, best, first, second, k, p, bottom, vocab):
    """The token of one row with top_k, top_p and, as the least order, min_p; k is `vocab` for none."""
    least = vocab * 0
    if k < vocab:
        goal = k.to(tl.float32)
        least = _threshold(logits, marks, bias, factor, often, once, heat, best, least, goal, vocab, COUNTING=True)
    if p < 1:
        total = _mass(logits, marks, bias, factor, often, once, heat, best, least, vocab)
        goal = tl.maximum(p * total, 1e-30)
        least = tl.maximum(
            least,
            _threshold(logits, marks, bias, factor, often, once, heat, best, least, goal, vocab, COUNTING=False),
        )
    least = tl.maximum(least, bottom)
    leading = best * 0.0 + NOTHING
    chosen = vocab - 1
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        scaled = scale_down(penalized(logits, marks, bias, factor, often, once, token, token < vocab), best, heat)
        kept = (token < vocab) & (order_of(scaled) >= least)
        noisy = tl.where(kept, scaled + gumbel(first, second, token), NOTHING)
        largest = tl.max(noisy, 0)
        candidate = tl.min(tl.where(noisy == largest, token, vocab - 1), 0)
        chosen = tl.where(largest > leading, candidate, chosen)
        leading = tl.maximum(leading, largest)
    return chosen


@triton.jit
def _mass(logits, marks, bias, factor, often, once, heat, best, least, vocab):
    """Sum of exp over what is in order >= `least`."""
    total = best * 0.0
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        scaled = scale_down(penalized(logits, marks, bias, factor, often, once, token, token < vocab), best, heat)
        total += tl.sum(tl.where((token < vocab) & (order_of(scaled) >= least), tl.exp(scaled), 0.0), 0)
    return total


@triton.jit
def _threshold(logits, marks, bias, factor, often, once, heat, best, least, goal, vocab, COUNTING: tl.constexpr):
    """The largest t such that the weights (one each, or exp) of what is in order >= t and >= `least` reach `goal`.

    Two bits of t a pass: each pass weighs the row at three candidates.
    """
    found = least.to(tl.int64) * 0
    for step in range(16):
        unit = found * 0 + (1 << (30 - 2 * step))
        mass1 = best * 0.0
        mass2 = best * 0.0
        mass3 = best * 0.0
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            scaled = scale_down(penalized(logits, marks, bias, factor, often, once, token, token < vocab), best, heat)
            order = order_of(scaled)
            weight = tl.where((token < vocab) & (order >= least), 1.0 if COUNTING else tl.exp(scaled), 0.0)
            mass1 += tl.sum(tl.where(order >= found + unit, weight, 0.0), 0)
            mass2 += tl.sum(tl.where(order >= found + unit * 2, weight, 0.0), 0)
            mass3 += tl.sum(tl.where(order >= found + unit * 3, weight, 0.0), 0)
        reached = (mass1 >= goal).to(tl.int64) + (mass2 >= goal).to(tl.int64) + (mass3 >= goal).to(tl.int64)
        found += unit * reached
    return found.to(tl.int32)
