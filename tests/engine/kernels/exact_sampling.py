"""A draw in float64 and whole numbers, written for reading: the tokens that each row may draw.

One, but where two are so close that fp32 may take them for each other: their noisy scores, or the edge of top_k or
top_p between them.
"""

import math
from collections.abc import Sequence

import torch

from service.engine.base import SamplingParams

BITS_64, BITS_32 = (1 << 64) - 1, (1 << 32) - 1


def strays(
    drawn: Sequence[int], logits: torch.Tensor, marks: torch.Tensor, params: Sequence[SamplingParams], position: int
) -> list[int]:
    """The rows of which a token was drawn that they may not draw; the first row draws for `position`, and so on."""
    rows = enumerate(zip(drawn, logits, marks, params, strict=True))
    return [n for n, (token, row, mark, each) in rows if not allowed(row, mark, each, position + n)[token]]


def allowed(logits: torch.Tensor, marks: torch.Tensor, params: SamplingParams, position: int) -> torch.Tensor:
    """True of the tokens [vocab] that a row of `logits` may draw; `marks` [vocab] as in `engine.sampling`."""
    marks = marks.long()
    scores = penalized(logits.double(), (marks & 1) > 0, params.repetition_penalty)
    for token, added in params.logit_bias:
        scores[token] += added
    frequency = round(params.frequency_penalty * 4096) / 4096
    scores -= (marks >> 2) * frequency + (marks >= 4) * params.presence_penalty
    scores[(marks & 2) > 0] = -torch.inf
    rounding = 2e-6 * float(scores[scores.isfinite()].abs().max())
    if params.temperature == 0:
        return scores >= scores.max() - rounding
    scaled = (scores - scores.max()) / params.temperature
    rounding = 1e-5 + rounding / params.temperature  # the noise's own, and the scores'
    surely = kept(scaled, params.top_k, params.top_p * (1 - rounding) if params.top_p < 1 else 1.0)
    maybe = kept(scaled, params.top_k, params.top_p * (1 + rounding))
    if params.min_p:
        surely &= scaled >= math.log(params.min_p)
        maybe &= scaled >= math.log(params.min_p) - rounding
    below = torch.where(surely, -torch.inf, scaled).max()
    surely &= (scaled > below + rounding) | (scaled == 0)
    maybe = scaled >= scaled[maybe].min() - rounding
    noisy = scaled + gumbel(params.seed, position, torch.arange(len(scaled)))
    return maybe & (noisy >= noisy[surely].max() - rounding)


def penalized(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """A seen token's logit comes nearer to nothing from above, and goes further from it below."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def kept(scaled: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Of each value, whether fewer than top_k are larger, and of those that are left less than top_p in probability."""
    values, which, counts = torch.unique(scaled, return_inverse=True, return_counts=True)
    larger: torch.Tensor = counts.sum() - counts.cumsum(0)
    stays = larger < (top_k or len(scaled))
    if top_p < 1:
        mass = (counts * values.exp()).masked_fill(~stays, 0.0)
        above = mass.flip(0).cumsum(0).flip(0) - mass
        stays &= (above < top_p * mass.sum()) | (larger == 0)
    return stays[which]


def gumbel(seed: int, position: int, tokens: torch.Tensor) -> torch.Tensor:
    """Noise of a uniform number in the open unit interval, from 31 bits that hash the three."""
    state = splitmix(splitmix(seed & BITS_64) + position * GOLDEN & BITS_64)
    bits = fmix(fmix(tokens ^ state & BITS_32) ^ state >> 32) % 2**31
    return -torch.log(-torch.log1p(-(bits.double() + 0.5) / 2**31))


GOLDEN = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    """SplitMix64's next number (Steele et al. 2014)."""
    mixed = state + GOLDEN & BITS_64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & BITS_64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & BITS_64
    return mixed ^ mixed >> 31


def fmix(words: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finalizer; int64 tensors hold the words."""
    words = (words ^ words >> 16) * 0x85EBCA6B & BITS_32
    words = (words ^ words >> 13) * 0xC2B2AE35 & BITS_32
    return words ^ words >> 16
