"""What the sampling kernels compute per token, each the counterpart of a function of `service.engine.sampling`.

Divisions are rounded as torch rounds them, so that scores which tie there tie here.
"""
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import triton
import triton.language as tl

from service.engine import logit_bias, sampling
from service.engine.defaults import MOST_BIASED as _MOST_BIASED

NOTHING = tl.constexpr(-3.0e38)
"""Below every score."""
SEEN = tl.constexpr(sampling.SEEN)
FORBIDDEN = tl.constexpr(sampling.FORBIDDEN)
ONCE = tl.constexpr(sampling.ONCE)
MOST_COUNTED = tl.constexpr(sampling.MOST_COUNTED)
BIAS_WIDTH = tl.constexpr(logit_bias.WIDTH)
MOST_BIASED = tl.constexpr(_MOST_BIASED)
BIAS_BLOCK = tl.constexpr(triton.next_power_of_2(_MOST_BIASED))
NO_TOKEN = tl.constexpr(0x7FFFFFFF)
"""Above every token's id."""


@triton.jit
def row_keys(seed, position):
    """`sampling.row_keys`: two uint32 from two int64."""
    state = _splitmix(_splitmix(seed.to(tl.uint64, bitcast=True)) + position.to(tl.uint64) * 0x9E3779B97F4A7C15)
    return state.to(tl.uint32), (state >> 32).to(tl.uint32)


@triton.jit
def gumbel(first, second, token):
    """`sampling.gumbel` for int32 token ids of any shape."""
    bits = _fmix(_fmix(token.to(tl.uint32) ^ first) ^ second) & 0x7FFFFFFF
    u = tl.minimum((bits.to(tl.float32) + 0.5) * 4.656612873077393e-10, 0.99999994)
    rest = 1.0 - u
    # log1p(-u) by log, right to the last bits also where 1 - u rounds (Goldberg 1991, theorem 4).
    divisor = tl.where(rest == 1.0, 1.0, 1.0 - rest)
    log1p = tl.where(rest == 1.0, -u, tl.log(rest) * (u / divisor))
    return -tl.log(-log1p)


@triton.jit
def biased(score, bias, token):
    """`logit_bias.biased`: one by one of those that lie among `token`, since few rows have any."""
    count = tl.load(bias)
    if count > 0:
        place = tl.arange(0, BIAS_BLOCK)
        ids = tl.load(bias + 1 + place, mask=place < count, other=NO_TOKEN)
        first = tl.sum((ids < tl.min(token)).to(tl.int32))
        end = tl.sum((ids <= tl.max(token)).to(tl.int32))
        for each in range(first, end):
            added = tl.load(bias + 1 + MOST_BIASED + each).to(tl.float32, bitcast=True)
            score += tl.where(token == tl.load(bias + 1 + each), added, 0.0)
    return score


@triton.jit
def penalized(logits, marks, bias, penalty, frequency, presence, token, inside):
    """`sampling.penalize`, `biased` and `amount_off`; NOTHING for what is forbidden, and outside the vocabulary."""
    logit = tl.load(logits + token, mask=inside, other=0.0).to(tl.float32)
    mark = tl.load(marks + token, mask=inside, other=0)
    factor = tl.zeros_like(logit) + penalty
    changed = tl.where(logit < 0, logit * factor, tl.div_rn(logit, factor))
    score = biased(tl.where((mark & SEEN) != 0, changed, logit), bias, token)
    count = (mark // ONCE).to(tl.float32)
    score -= count * frequency + tl.where(count > 0, presence, 0.0)
    return tl.where(inside & ((mark & FORBIDDEN) == 0), score, NOTHING)


@triton.jit
def mark_of_drawn(mark):
    """The mark of a token that is drawn, which was not forbidden: seen, and once more in the answer."""
    return tl.minimum(mark // ONCE + 1, MOST_COUNTED) * ONCE + SEEN


@triton.jit
def scale_down(score, best, temperature):
    """Never above zero; minus zero, whose bits differ, becomes zero."""
    below = tl.maximum(score - best, NOTHING)
    return tl.div_rn(below, tl.zeros_like(below) + temperature) + 0.0


@triton.jit
def order_of(scaled):
    """float32 <= 0 as int32 >= 0 of the same order: what is left of the bits below the sign."""
    return 0x7FFFFFFF - (scaled.to(tl.int32, bitcast=True) & 0x7FFFFFFF)


@triton.jit
def _splitmix(x):
    x = x + 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _fmix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)
