"""The next token of every row in two launches, without sorting the vocabulary: `service.engine.sampling` on a GPU.

Parameters are read from the slots' own tables and the slots advance in the same launch: gathered and updated by
operations of their own, a dozen of them, they would cost as much again.

Only thresholds matter: top_k keeps what is not below the k-th value, top_p what has less than top_p of the probability
strictly above it. `scan` reads the logits once, in parallel, and keeps the largest score of every 128 tokens. `draw`
takes the 64 best of these groups, 8,192 tokens, into registers: whatever lies outside is not above the least of their
maxima, so a threshold above that is exact. It is found by bisecting the bits of the scores' order. A row whose
threshold lies lower (a flat distribution without top_k) is bisected over its whole vocabulary, by `sampling_slow`.

Noise is the same function of (seed, position, token id) as in `service.engine.sampling`, so both draw the same token.
In plain torch operations the same took 0.25 ms of a 7 ms step for one row and 1.1 ms for 256 rows on an H100.
"""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.kernels.sampling_math import (
    BIAS_WIDTH,
    NOTHING,
    gumbel,
    mark_of_drawn,
    order_of,
    penalized,
    row_keys,
    scale_down,
)
from service.engine.kernels.sampling_slow import draw_from_vocabulary
from service.engine.sampling import Method
from service.engine.steps.slots import Slots

GROUP = tl.constexpr(128)
"""Tokens that share one maximum."""
CHUNK_GROUPS = 16
"""Groups a program of `scan` reads."""
BEST_GROUPS = tl.constexpr(64)
"""Groups that `draw` looks into."""
GREEDY = tl.constexpr(int(Method.GREEDY))
UNFILTERED = tl.constexpr(int(Method.UNFILTERED))
LARGEST_INDEX = tl.constexpr(0x7FFFFFFF)
PER_ROW = ["slots", "method", "temperature", "top_k", "top_p", "log_min_p", "penalty", "frequency", "presence", "seed"]
PER_ROW += ["tokens", "positions"]
"""One number a row or slot, cut out of larger tensors: where a piece begins follows from how many there are. Its
alignment would have the largest kernel compiled anew, for seconds; a single number gains nothing by it."""


@triton.jit(do_not_specialize_on_alignment=PER_ROW)
def scan_kernel(
    logits: tl.tensor,
    slots: tl.tensor,
    marks: tl.tensor,
    bias: tl.tensor,
    method: tl.tensor,
    temperature: tl.tensor,
    penalty: tl.tensor,
    frequency: tl.tensor,
    presence: tl.tensor,
    seed: tl.tensor,
    positions: tl.tensor,
    group_best: tl.tensor,
    chunk_sum: tl.tensor,
    chunk_winner: tl.tensor,
    vocab: int,
    groups: int,
    chunks: int,
    OVERLAPS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
) -> None:
    """One program a row and chunk: each group's largest score; the chunk's sum of exp; an unfiltered draw's winner."""
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    group = chunk * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = token < vocab
    slot = tl.load(slots + row)
    factor, often, once = tl.load(penalty + slot), tl.load(frequency + slot), tl.load(presence + slot)
    logits, marks, bias = logits + row * vocab, marks + slot * vocab, bias + slot * BIAS_WIDTH
    score = penalized(logits, marks, bias, factor, often, once, token, inside)
    maxima = tl.max(score, 1)
    tl.store(group_best + row * groups + group, maxima, mask=group < groups)
    how = tl.load(method + slot)
    if how != GREEDY:
        scaled = scale_down(score, tl.max(maxima, 0), tl.load(temperature + slot))
        tl.store(chunk_sum + row * chunks + chunk, tl.sum(tl.where(inside, tl.exp(scaled), 0.0)))
        if how == UNFILTERED:
            first, second = row_keys(tl.load(seed + slot), tl.load(positions + slot) + 1)
            noisy = tl.where(inside, scaled + gumbel(first, second, token), NOTHING)
            winner = tl.min(tl.where(noisy == tl.max(noisy), token, vocab - 1))
            tl.store(chunk_winner + row * chunks + chunk, winner)


@triton.jit
def threshold(order, weight, goal):  # type: ignore[no-untyped-def]
    """The largest t such that the weights of everything in order >= t reach `goal`; 0 if nothing does."""
    found = tl.sum(order * 0)
    for step in range(31):
        candidate = found + (1 << (30 - step))
        mass = tl.sum(tl.where(order >= candidate, weight, 0.0))
        found = tl.where(mass >= goal, candidate, found)
    return found


@triton.jit
def unfiltered_winner(  # type: ignore[no-untyped-def]
    logits,
    marks,
    bias,
    factor,
    often,
    once,
    heat,
    best,
    first,
    second,
    chunk_winner,
    chunks,
    vocab,
    BLOCK_CHUNKS: tl.constexpr,
):
    """The best of the chunks' winners."""
    chunk = tl.arange(0, BLOCK_CHUNKS)
    token = tl.load(chunk_winner + chunk, mask=chunk < chunks, other=0)
    scaled = scale_down(penalized(logits, marks, bias, factor, often, once, token, token < vocab), best, heat)
    noisy = tl.where(chunk < chunks, scaled + gumbel(first, second, token), NOTHING)
    return tl.min(tl.where(noisy == tl.max(noisy), token, vocab - 1))


@triton.jit
def probability_sum(  # type: ignore[no-untyped-def]
    group_best, chunk_sum, best, heat, groups, chunks, CHUNK_GROUPS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr
):
    """Sum of exp over the vocabulary, relative to `best`, from the chunks' own."""
    chunk = tl.arange(0, BLOCK_CHUNKS)
    group = chunk[:, None] * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)[None, :]
    maxima = tl.max(tl.load(group_best + group, mask=group < groups, other=NOTHING), 1)
    sums = tl.load(chunk_sum + chunk, mask=chunk < chunks, other=0.0)
    return tl.sum(tl.where(chunk < chunks, sums * tl.exp(scale_down(maxima, best, heat)), 0.0))


@triton.jit
def bottom_of(log_min_p):  # type: ignore[no-untyped-def]
    """The order of the least score that min_p keeps; 0, which is none, where it keeps all."""
    return tl.where(log_min_p > NOTHING, order_of(log_min_p), 0)


@triton.jit
def leading_tokens(maxima, group):  # type: ignore[no-untyped-def]
    """The tokens of the groups with the largest maxima: [BEST_GROUPS, GROUP]."""
    bits = maxima.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & LARGEST_INDEX)
    # The index is subtracted so that of equal groups the first comes first, as in a greedy row's first best token.
    packed = order.to(tl.int64) * (1 << 31) + (LARGEST_INDEX - group)
    leader = LARGEST_INDEX - (tl.topk(packed, BEST_GROUPS) & LARGEST_INDEX).to(tl.int32)
    return leader[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def filter_leaders(order, scaled, inside, bound, total, k, p, bottom, vocab):  # type: ignore[no-untyped-def]
    """The least order that the filters keep, and whether it is exact: above `bound`, where nothing is unseen.

    `total` is the vocabulary's sum of exp; k is `vocab` for no top_k; `bottom` is min_p as the least order, 0 for none.
    """
    weight = tl.where(inside, tl.exp(scaled), 0.0)
    least = bound * 0
    exact = True
    if k < vocab:
        least = threshold(order, tl.where(inside, 1.0, 0.0), k.to(tl.float32))
        exact = least > bound
        total = tl.sum(tl.where(order >= least, weight, 0.0))
    if p < 1:
        # The most probable token always stays, however small top_p is.
        goal = tl.maximum(p * total, 1e-30)
        least = tl.maximum(least, threshold(order, tl.where(order >= least, weight, 0.0), goal))
    # Where min_p keeps nothing that is unseen, it decides, or what was found above it does; but top_p is a share of
    # what top_k leaves, and that must be known.
    least = tl.maximum(least, bottom)
    return least, (exact | (p >= 1)) & (least > bound)


@triton.jit(do_not_specialize=["spare"], do_not_specialize_on_alignment=PER_ROW)
def draw_kernel(
    logits: tl.tensor,
    slots: tl.tensor,
    marks: tl.tensor,
    bias: tl.tensor,
    method: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    log_min_p: tl.tensor,
    penalty: tl.tensor,
    frequency: tl.tensor,
    presence: tl.tensor,
    seed: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    group_best: tl.tensor,
    chunk_sum: tl.tensor,
    chunk_winner: tl.tensor,
    out: tl.tensor,
    vocab: int,
    groups: int,
    chunks: int,
    spare: int,
    OVERLAPS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
) -> None:
    """One program a row. The `spare` slot, which rows of padding share, stays as it is."""
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    logits += row * vocab
    marks += slot * vocab
    bias += slot * BIAS_WIDTH
    how = tl.load(method + slot)
    factor, often, once = tl.load(penalty + slot), tl.load(frequency + slot), tl.load(presence + slot)
    heat = tl.where(how == GREEDY, 1.0, tl.load(temperature + slot))
    k = tl.load(top_k + slot)
    k = tl.where((k > 0) & (k < vocab), k, vocab)
    p = tl.load(top_p + slot)
    position = tl.load(positions + slot) + 1
    first, second = row_keys(tl.load(seed + slot), position)
    group = tl.arange(0, BLOCK_GROUPS)
    maxima = tl.load(group_best + row * groups + group, mask=group < groups, other=NOTHING)
    best = tl.max(maxima, 0)

    if how == UNFILTERED:
        winners = chunk_winner + row * chunks
        chosen = unfiltered_winner(
            logits, marks, bias, factor, often, once, heat, best, first, second, winners, chunks, vocab, BLOCK_CHUNKS
        )
    else:
        token = leading_tokens(maxima, group)
        score = penalized(logits, marks, bias, factor, often, once, token, token < vocab)
        inside = (token < vocab) & ~(score <= NOTHING)  # not what is forbidden
        scaled = scale_down(score, best, heat)
        order = tl.where(inside, order_of(scaled), 0)
        least = tl.max(order)
        exact = True
        if how != GREEDY:
            best_of, sums = group_best + row * groups, chunk_sum + row * chunks
            total = probability_sum(best_of, sums, best, heat, groups, chunks, CHUNK_GROUPS, BLOCK_CHUNKS)
            # Nothing outside is above the least of the leaders' maxima. With few groups nothing is outside, and nothing
            # that may be drawn when one of the leaders already has none of that (a grammar allows little).
            bound = tl.min(tl.max(order, 1), 0)
            bound = tl.where((groups <= BEST_GROUPS) | (bound == 0), -1, bound)
            bottom = bottom_of(tl.load(log_min_p + slot))
            least, exact = filter_leaders(order, scaled, inside, bound, total, k, p, bottom, vocab)
        noise = tl.where(how == GREEDY, 0.0, gumbel(first, second, token))
        noisy = tl.where(inside & (order >= least), scaled + noise, NOTHING)
        chosen = tl.min(tl.where(noisy == tl.max(noisy), token, vocab - 1))
        if not exact:
            bottom = bottom_of(tl.load(log_min_p + slot))
            chosen = draw_from_vocabulary(
                logits, marks, bias, factor, often, once, heat, best, first, second, k, p, bottom, vocab
            )
    chosen = tl.minimum(chosen, vocab - 1).to(tl.int64)
    tl.store(out + row, chosen)
    is_real = slot != spare
    tl.store(tokens + slot, chosen, mask=is_real)
    tl.store(positions + slot, position, mask=is_real)
    tl.store(marks + chosen, mark_of_drawn(tl.load(marks + chosen)).to(tl.uint8), mask=is_real)


def sample(
    logits: torch.Tensor, slots: Slots, numbers: torch.Tensor, methods: set[Method], *, overlaps: bool = False
) -> torch.Tensor:
    """See `ops.Sample`: logits of any float type; a row's method is read on the device, `methods` is not needed."""
    logits, rows = logits.contiguous(), slots.parameters
    batch, vocab = logits.shape
    groups = triton.cdiv(vocab, GROUP.value)
    chunks = triton.cdiv(groups, CHUNK_GROUPS)
    group_best = torch.empty(batch, groups, dtype=torch.float32, device=logits.device)
    chunk_sum = torch.empty(batch, chunks, dtype=torch.float32, device=logits.device)
    chunk_winner = torch.empty(batch, chunks, dtype=torch.int32, device=logits.device)
    out = torch.empty(batch, dtype=torch.int64, device=logits.device)
    scratch = (group_best, chunk_sum, chunk_winner)
    scan_kernel[(batch, chunks)](
        logits,
        numbers,
        rows.marks,
        rows.bias,
        rows.method,
        rows.temperature,
        rows.penalty,
        rows.frequency,
        rows.presence,
        rows.seed,
        slots.positions,
        *scratch,
        vocab,
        groups,
        chunks,
        CHUNK_GROUPS=CHUNK_GROUPS,
        num_warps=4,
        **launch_options(overlaps),
    )
    draw_kernel[(batch,)](
        logits,
        numbers,
        rows.marks,
        rows.bias,
        rows.method,
        rows.temperature,
        rows.top_k,
        rows.top_p,
        rows.log_min_p,
        rows.penalty,
        rows.frequency,
        rows.presence,
        rows.seed,
        slots.tokens,
        slots.positions,
        *scratch,
        out,
        vocab,
        groups,
        chunks,
        slots.spare,
        BLOCK_GROUPS=max(BEST_GROUPS.value, triton.next_power_of_2(groups)),
        BLOCK_CHUNKS=triton.next_power_of_2(chunks),
        CHUNK_GROUPS=CHUNK_GROUPS,
        num_warps=16,
        **launch_options(overlaps),
    )
    return out
