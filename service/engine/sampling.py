"""The next token of every row of a batch, each row by its own parameters and its own seed.

The order is that of transformers' processors: what a grammar forbids, repetition penalty, what OpenAI's API adds to
tokens and takes off for those of the answer, temperature, top_k, top_p, min_p, then a draw. A draw is the Gumbel-max
trick (Gumbel 1954; Maddison et al. 2014, "A* sampling"): the largest of log-probability + noise. The noise
is a hash of seed, position and token id, so that a request gets the same tokens alone and in any batch.

How a row is drawn follows from its own parameters alone, never from its neighbours', so that rounding can't either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import torch

from service.engine.base import SamplingParams
from service.engine.logit_bias import biased

TOP_K_LIMIT = 64
"""Largest top_k that is drawn from candidates instead of a sorted vocabulary: the usual 20-50 lie below."""
CANDIDATES = 2 * TOP_K_LIMIT
"""Tokens taken for it. The surplus holds those that tie with the k-th: transformers keeps them, so do we."""

SEEN, FORBIDDEN, ONCE = 1, 2, 4
"""A token's mark, a byte: whether it stands in prompt or answer; whether the answer's grammar has no place for it next;
and, in the bits from ONCE on, how often it stands in the answer."""
MOST_COUNTED = 255 // ONCE
"""More often than so a token is not counted: a frequency penalty has long decided by then."""
FREQUENCY_STEP = 2.0**-12
"""Frequency penalties are rounded to it. Their products with a count are then exact in fp32, and it makes no difference
whether a multiplication and the addition behind it are rounded once, as on a GPU, or twice."""

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_A, _MIX_B = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)
_FMIX_A, _FMIX_B = 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)


class Method(IntEnum):
    """How a row's token is drawn; each is exact for the parameters that `method_of` gives it."""

    GREEDY = 0  # the largest, after penalties and bias
    CANDIDATES = 1  # 1 <= top_k <= TOP_K_LIMIT: only a few tokens are sorted
    UNFILTERED = 2  # neither top_k nor top_p nor min_p: nothing is sorted
    SORTED = 3  # the rest: the vocabulary is sorted


def method_of(params: SamplingParams, vocab_size: int) -> Method:
    """The cheapest exact method."""
    if params.temperature == 0:
        return Method.GREEDY
    if 0 < params.top_k <= min(TOP_K_LIMIT, vocab_size - 1):
        return Method.CANDIDATES
    is_unfiltered = params.top_p >= 1 and not params.min_p and not 0 < params.top_k < vocab_size
    return Method.UNFILTERED if is_unfiltered else Method.SORTED


@dataclass(frozen=True, slots=True)
class Rows:
    """The parameters of a batch's rows, each [B]; `marks` [B, vocab] are the tokens' (see SEEN), of which at least one
    must not be FORBIDDEN."""

    method: torch.Tensor  # int64, a Method
    temperature: torch.Tensor  # fp32
    top_k: torch.Tensor  # int64
    top_p: torch.Tensor  # fp32
    log_min_p: torch.Tensor  # fp32
    penalty: torch.Tensor  # fp32, for repetition
    frequency: torch.Tensor  # fp32, a multiple of FREQUENCY_STEP
    presence: torch.Tensor  # fp32
    seed: torch.Tensor  # int64
    marks: torch.Tensor  # uint8
    bias: torch.Tensor  # int32 [B, logit_bias.WIDTH]


def sample(logits: torch.Tensor, rows: Rows, positions: torch.Tensor, methods: set[Method]) -> torch.Tensor:
    """One token per row [B] of logits [B, vocab], taken in fp32, for the `positions` [B] they will take.

    `methods` must contain every row's method: the host knows them, and nothing is computed for one that is absent.
    """
    scores = biased(penalize(logits.float(), (rows.marks & SEEN).bool(), rows.penalty), rows.bias)
    scores = scores - amount_off(rows.marks, rows.frequency, rows.presence)
    scores = scores.masked_fill((rows.marks & FORBIDDEN).bool(), float("-inf"))
    best, tokens = scores.max(dim=-1)
    if methods <= {Method.GREEDY}:
        return tokens
    # Against the largest score and before the division, so that no temperature, however low, overflows.
    scaled = (scores - best[:, None]) / rows.temperature[:, None]
    keys = row_keys(rows.seed, positions)
    for method in sorted(methods - {Method.GREEDY}):
        tokens = torch.where(rows.method == method, _DRAWS[method](scaled, rows, keys), tokens)
    return tokens


def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Logits of seen tokens divided by the penalty where positive and multiplied where negative (CTRL, Keskar 2019)."""
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * factor, logits / factor), logits)


def frequency_of(params: SamplingParams) -> float:
    """The frequency penalty that is kept to."""
    return round(params.frequency_penalty / FREQUENCY_STEP) * FREQUENCY_STEP


def amount_off(marks: torch.Tensor, frequency: torch.Tensor, presence: torch.Tensor) -> torch.Tensor:
    """What OpenAI's penalties take off each logit: `frequency` as often as the token stands in the answer, and
    `presence` once if it does. Source: https://platform.openai.com/docs/api-reference/chat/create; that the prompt does
    not count is how vLLM reads it (vllm/sampling_params.py)."""
    count = (marks // ONCE).float()
    return count * frequency[:, None] + torch.where(count > 0, presence[:, None], 0.0)


def row_keys(seed: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 32-bit keys per row [B] from the 64-bit seed and the position: SplitMix64 (Steele et al. 2014)."""
    state = _splitmix(_splitmix(seed) + positions.to(torch.int64) * _GOLDEN)
    return state.to(torch.int32), (state >> 32).to(torch.int32)


def gumbel(keys: tuple[torch.Tensor, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise [B, N] for token ids [B, N] or [N], from MurmurHash3's finalizer under the rows' keys."""
    first, second = (key[:, None] for key in keys)
    bits = _fmix(_fmix(tokens.to(torch.int32) ^ first) ^ second) & 0x7FFFFFFF
    # Small u decide who wins, and fp32 resolves them finely: u is taken near 0, never near 1.
    uniform = ((bits.float() + 0.5) * 2.0**-31).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-uniform))


def _draw_candidates(scaled: torch.Tensor, rows: Rows, keys: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    values, tokens = scaled.topk(min(CANDIDATES, scaled.shape[1]), dim=-1)
    values = _filter(values, values, rows)
    return tokens.gather(1, (values + gumbel(keys, tokens)).argmax(dim=-1, keepdim=True)).squeeze(1)


def _draw_sorted(scaled: torch.Tensor, rows: Rows, keys: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return _draw_unfiltered(_filter(scaled, scaled.sort(dim=-1, descending=True).values, rows), rows, keys)


def _draw_unfiltered(scaled: torch.Tensor, rows: Rows, keys: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    tokens = torch.arange(scaled.shape[1], device=scaled.device)
    return (scaled + gumbel(keys, tokens)).argmax(dim=-1)


def _filter(values: torch.Tensor, descending: torch.Tensor, rows: Rows) -> torch.Tensor:
    """`values` with -inf wherever top_k, top_p or min_p excludes them, judged by the row's `descending` ones.

    top_k keeps what is not below the k-th value; top_p what has less than top_p of the probability strictly above
    it; min_p what has at least that share of the best one's. All are thresholds on the value: equal ones stay or go
    together, in whatever order a sort left them.
    """
    last = values.new_full((), descending.shape[1], dtype=torch.int64)
    k = torch.where(rows.top_k > 0, rows.top_k, last).clamp(max=last)
    kth = descending.gather(1, k[:, None] - 1)
    ranked = descending.masked_fill(descending < kth, float("-inf"))
    probability = ranked.softmax(dim=-1)
    above = probability.cumsum(dim=-1) - probability
    limit = torch.where(rows.top_p < 1, rows.top_p.clamp(min=torch.finfo(torch.float32).tiny), float("inf"))
    least = ranked.masked_fill(above >= limit[:, None], float("inf")).amin(dim=-1, keepdim=True)
    return values.masked_fill(values < torch.maximum(torch.maximum(least, kth), rows.log_min_p[:, None]), float("-inf"))


def _splitmix(x: torch.Tensor) -> torch.Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30, 64)) * _MIX_A
    x = (x ^ _shift(x, 27, 64)) * _MIX_B
    return x ^ _shift(x, 31, 64)


def _fmix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 16, 32)) * _FMIX_A
    x = (x ^ _shift(x, 13, 32)) * _FMIX_B
    return x ^ _shift(x, 16, 32)


def _shift(x: torch.Tensor, by: int, bits: int) -> torch.Tensor:
    """x >> by of a signed tensor as if it were unsigned."""
    return (x >> by) & ((1 << (bits - by)) - 1)


_Draw = Callable[[torch.Tensor, Rows, tuple[torch.Tensor, torch.Tensor]], torch.Tensor]
_DRAWS: dict[Method, _Draw] = {
    Method.CANDIDATES: _draw_candidates,
    Method.UNFILTERED: _draw_unfiltered,
    Method.SORTED: _draw_sorted,
}
