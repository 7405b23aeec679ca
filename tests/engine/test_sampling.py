"""The sampler: what it may draw and how often is transformers' own answer; what it draws depends on nothing else."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from service.engine import logit_bias
from service.engine.base import SamplingParams
from service.engine.sampling import (
    FORBIDDEN,
    ONCE,
    SEEN,
    TOP_K_LIMIT,
    Method,
    Rows,
    frequency_of,
    gumbel,
    method_of,
    penalize,
    row_keys,
    sample,
)

VOCAB = 500
DRAWS = 20_000
AT_ONCE = 500
"""Rows that are made once and drawn by at one position after the other: to make them takes longer than to draw."""
SEEN_TOKENS = list(range(0, VOCAB, 3))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def some_logits(seed: int = 0, vocab: int = VOCAB, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def params(**changes: Any) -> SamplingParams:
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
    return SamplingParams(**(off | changes))


def rows_of(batch: list[SamplingParams], vocab: int = VOCAB, seen: list[list[int]] | None = None) -> Rows:
    marks = torch.zeros(len(batch), vocab, dtype=torch.uint8)
    for row, tokens in enumerate(seen or []):
        marks[row, tokens] = SEEN
    return Rows(
        method=torch.tensor([method_of(p, vocab) for p in batch]),
        temperature=torch.tensor([p.temperature for p in batch]),
        top_k=torch.tensor([p.top_k for p in batch]),
        top_p=torch.tensor([p.top_p for p in batch]),
        log_min_p=torch.tensor([p.min_p for p in batch]).log(),
        penalty=torch.tensor([p.repetition_penalty for p in batch]),
        frequency=torch.tensor([p.frequency_penalty for p in batch]),
        presence=torch.tensor([p.presence_penalty for p in batch]),
        seed=torch.tensor([p.seed for p in batch]),
        marks=marks,
        bias=torch.tensor([logit_bias.row_of(p) for p in batch], dtype=torch.int32),
    )


def draw(
    logits: torch.Tensor,
    batch: list[SamplingParams],
    positions: list[int],
    seen: list[list[int]] | None = None,
) -> list[int]:
    rows = rows_of(batch, logits.shape[1], seen)
    methods = {method_of(p, logits.shape[1]) for p in batch}
    tokens: list[int] = sample(logits, rows, torch.tensor(positions), methods).tolist()
    return tokens


def transformers_probabilities(logits: torch.Tensor, p: SamplingParams, seen: list[int]) -> torch.Tensor:
    """What `generate(do_sample=True)` would draw from: its processors in its order."""
    processors = LogitsProcessorList()
    if p.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.logit_bias:
        processors.append(SequenceBiasLogitsProcessor({(token,): added for token, added in p.logit_bias}))
    processors.append(TemperatureLogitsWarper(p.temperature))
    if p.top_k:
        processors.append(TopKLogitsWarper(p.top_k))
    if p.top_p < 1.0:
        processors.append(TopPLogitsWarper(p.top_p))
    if p.min_p:
        processors.append(MinPLogitsWarper(p.min_p))
    return processors(torch.tensor([seen]), logits.clone()).softmax(-1)[0]


BIAS = ((0, 7.0), (3, 9.0), (4, -100.0), (5, 0.25), (9, -3.0), (11, 8.5))
"""Of tokens that were seen and that were not. The best logits are around 8."""
SETTINGS = [
    params(),
    params(temperature=0.5),
    params(temperature=1.7, top_k=40),
    params(top_k=1),
    params(top_k=5, top_p=0.5),
    params(top_k=TOP_K_LIMIT),
    params(top_k=TOP_K_LIMIT + 1),
    params(top_k=VOCAB - 1),
    params(top_k=VOCAB),
    params(top_k=10 * VOCAB, top_p=0.9),
    params(top_p=0.1),
    params(top_p=0.8),
    params(top_p=0.999),
    params(repetition_penalty=1.3),
    params(repetition_penalty=0.7, top_p=0.8),
    params(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005),
    params(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.3),
    params(temperature=0.7, top_k=200, top_p=0.9, repetition_penalty=1.1),
    params(min_p=0.05),
    params(min_p=1.0),
    params(min_p=0.02, top_k=40, temperature=1.7),
    params(min_p=0.001, top_k=200, top_p=0.99, temperature=2.0),
    params(logit_bias=BIAS, top_p=0.95),
    params(logit_bias=BIAS, top_k=10, temperature=2.0, repetition_penalty=1.5),
]


@pytest.mark.parametrize("p", SETTINGS, ids=repr)
def test_draws_are_distributed_as_transformers_would_draw(p: SamplingParams) -> None:
    logits = some_logits()
    drawn = many_draws(logits, p, rows_of([p] * AT_ONCE, seen=[SEEN_TOKENS] * AT_ONCE))
    assert_drawn_from(transformers_probabilities(logits, p, SEEN_TOKENS), drawn)


def many_draws(logits: torch.Tensor, p: SamplingParams, rows: Rows, draws: int = DRAWS) -> torch.Tensor:
    """Tokens drawn at as many positions, [draws], AT_ONCE at a time by the same rows."""
    vocab = logits.shape[1]
    steps = torch.arange(draws).split(AT_ONCE)
    drawn = [sample(logits.expand(AT_ONCE, -1), rows, positions, {method_of(p, vocab)}) for positions in steps]
    return torch.cat(drawn)


def assert_drawn_from(expected: torch.Tensor, drawn: torch.Tensor) -> None:
    """DRAWS draws are as often of each token as draws from `expected`."""
    support, frequencies = expected > 0, torch.bincount(drawn, minlength=VOCAB) / DRAWS
    assert not frequencies[~support].any(), "a token that transformers excludes was drawn"
    assert frequencies[expected > 20 / DRAWS].all(), "a token that transformers draws often was never drawn"
    # The mean of the total variation distance of n draws is at most sqrt(support / (2 pi n)) in the Gaussian limit.
    bound = (int(support.sum()) / (2 * torch.pi * DRAWS)) ** 0.5
    assert (frequencies - expected).abs().sum() / 2 < 1.5 * bound + 1e-6


@pytest.mark.parametrize("p", SETTINGS, ids=repr)
def test_every_token_of_the_support_can_win(p: SamplingParams) -> None:
    """Over a small vocabulary whatever transformers would draw now and then turns up, and nothing else does."""
    logits, seen = some_logits(vocab=60), list(range(0, 60, 3))
    expected = transformers_probabilities(logits, p, seen)
    drawn = set(many_draws(logits, p, rows_of([p] * AT_ONCE, 60, [seen] * AT_ONCE), draws=12_000).tolist())
    certain = {token for token in range(60) if expected[token] > 0.002}
    assert certain <= drawn <= {token for token in range(60) if expected[token] > 0}


@pytest.mark.parametrize("penalty", [1.0, 1.005, 1.3, 0.8, 4.0])
def test_the_penalty_is_transformers_to_the_bit(penalty: float) -> None:
    logits = some_logits(rows=3)
    seen = [[1, 2, 3], list(range(VOCAB)), [0]]
    rows = rows_of([params(repetition_penalty=penalty)] * 3, seen=seen)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    for row in range(3):
        expected = processor(torch.tensor([seen[row]]), logits[row : row + 1].clone())
        assert torch.equal(penalize(logits, rows.marks.bool(), rows.penalty)[row : row + 1], expected)


def test_temperature_zero_takes_the_largest_after_the_penalty() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.9, -5.0]])
    greedy = params(temperature=0.0, repetition_penalty=1.5)
    assert draw(logits, [greedy], [7], [[]]) == [1]
    assert draw(logits, [greedy], [7], [[1]]) == [2]


def test_an_equal_bias_leaves_tokens_apart_as_they_were() -> None:
    """A choice between two, of which one stands in the prompt: the repetition penalty makes nothing of a hundred."""
    logits = torch.tensor([[1.0, 20.4, 20.0, 25.0]])
    choice = params(temperature=0.0, repetition_penalty=1.005, logit_bias=((1, 100.0), (2, 100.0)))
    assert draw(logits, [choice], [7], [[1]]) == [1]


def test_of_equal_largest_logits_greedy_takes_the_first() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [77, 300]] = 5.0
    assert draw(logits, [params(temperature=0.0)], [0]) == [77]


ALLOWED = [3, 77, 150, 151, 300, 499]


@pytest.mark.parametrize("p", [params(temperature=0.0), *SETTINGS], ids=str)
@pytest.mark.parametrize("allowed", [ALLOWED, list(range(1, VOCAB, 2))], ids=["few", "half"])
def test_what_is_forbidden_is_never_drawn_and_the_rest_as_if_there_was_nothing_else(
    p: SamplingParams, allowed: list[int]
) -> None:
    """transformers' processors over logits that are minus infinity where a token is forbidden."""
    logits = some_logits(3)
    left = torch.full_like(logits, -math.inf)
    left[:, allowed] = logits[:, allowed]
    rows = rows_of([p] * AT_ONCE, seen=[SEEN_TOKENS] * AT_ONCE)
    rows.marks.bitwise_or_(FORBIDDEN)[:, allowed] &= SEEN
    drawn = many_draws(logits, p, rows)
    if p.temperature:
        assert_drawn_from(transformers_probabilities(left, p, SEEN_TOKENS), drawn)
    else:
        assert set(drawn.tolist()) == {int(left.argmax())}


@pytest.mark.parametrize("p", [params(temperature=0.0), *SETTINGS], ids=str)
def test_a_token_that_alone_is_allowed_is_drawn(p: SamplingParams) -> None:
    draws = 50
    rows = rows_of([p] * draws, seen=[SEEN_TOKENS] * draws)
    rows.marks.bitwise_or_(FORBIDDEN)[:, ALLOWED[0]] &= SEEN
    drawn = sample(some_logits(3).expand(draws, -1), rows, torch.arange(draws), {method_of(p, VOCAB)})
    assert set(drawn.tolist()) == {ALLOWED[0]}


BATCH = [
    params(temperature=0.0, repetition_penalty=1.2),
    params(top_k=40, top_p=0.8, seed=1),
    params(seed=2),
    params(top_p=0.7, seed=3),
    params(top_k=300, seed=4),
    params(top_k=40, top_p=0.8, seed=5),
]


def test_a_row_draws_the_same_alone_and_among_any_neighbours() -> None:
    logits = some_logits(rows=len(BATCH), seed=3)
    seen = [[row, row + 10, row + 20] for row in range(len(BATCH))]
    for position in range(50):
        positions = [position + 3 * row for row in range(len(BATCH))]
        together = draw(logits, BATCH, positions, seen)
        alone = [
            draw(logits[row : row + 1], BATCH[row : row + 1], positions[row : row + 1], seen[row : row + 1])[0]
            for row in range(len(BATCH))
        ]
        assert together == alone


@pytest.mark.parametrize(
    "p",
    [
        params(frequency_penalty=0.25),
        params(presence_penalty=-1.5),
        params(frequency_penalty=-0.5, presence_penalty=2.0, repetition_penalty=1.3, top_p=0.9),
    ],
    ids=str,
)
def test_what_tokens_of_the_answer_cost_comes_off_their_logits_after_the_repetition_penalty(p: SamplingParams) -> None:
    counts = {7: 1, 8: 2, 9: 40, 10: 63}
    logits = some_logits(5)
    left = logits.clone()
    for token in [*counts, 20, 21]:
        value = float(left[0, token])
        left[0, token] = value * p.repetition_penalty if value < 0 else value / p.repetition_penalty
    for token, count in counts.items():
        left[0, token] -= count * p.frequency_penalty + p.presence_penalty
    rows = rows_of([p] * AT_ONCE, seen=[[*counts, 20, 21]] * AT_ONCE)
    rows.marks[:, [*counts]] += torch.tensor([*counts.values()], dtype=torch.uint8) * ONCE
    assert_drawn_from(transformers_probabilities(left, params(top_p=p.top_p), []), many_draws(logits, p, rows))


@pytest.mark.parametrize(("asked", "kept"), [(0.0, 0.0), (0.5, 0.5), (-2.0, -2.0), (0.1, 410 / 4096), (1e-5, 0.0)])
def test_a_frequency_penalty_is_rounded_so_that_its_products_are_exact(asked: float, kept: float) -> None:
    assert frequency_of(params(frequency_penalty=asked)) == kept
    products = torch.arange(64) * torch.tensor(kept)
    assert products.double().tolist() == [n * kept for n in range(64)]


@given(
    top_k=st.integers(1, TOP_K_LIMIT),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.8, 0.95, 1.0]),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.0]),
    seed=st.integers(-(2**63), 2**63 - 1),
    logits_seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_candidates_and_sorted_vocabulary_draw_the_same_token(
    top_k: int, top_p: float, temperature: float, seed: int, logits_seed: int
) -> None:
    p = params(top_k=top_k, top_p=top_p, temperature=temperature, seed=seed)
    logits = some_logits(logits_seed).expand(16, -1)
    positions = torch.arange(16)
    fast = rows_of([p] * 16)
    slow = rows_of([p] * 16)
    slow.method[:] = Method.SORTED
    assert torch.equal(
        sample(logits, fast, positions, {Method.CANDIDATES}), sample(logits, slow, positions, {Method.SORTED})
    )


def test_a_sorted_row_without_filters_draws_what_an_unfiltered_one_draws() -> None:
    logits, positions = some_logits().expand(64, -1), torch.arange(64)
    rows, forced = rows_of([params(seed=9)] * 64), rows_of([params(seed=9)] * 64)
    forced.method[:] = Method.SORTED
    unfiltered = sample(logits, rows, positions, {Method.UNFILTERED})
    assert torch.equal(unfiltered, sample(logits, forced, positions, {Method.SORTED}))


@pytest.mark.parametrize(
    ("p", "method"),
    [
        (params(temperature=0.0, top_k=3), Method.GREEDY),
        (params(top_k=40, top_p=0.8), Method.CANDIDATES),
        (params(top_k=TOP_K_LIMIT), Method.CANDIDATES),
        (params(top_k=TOP_K_LIMIT + 1), Method.SORTED),
        (params(top_p=0.9), Method.SORTED),
        (params(), Method.UNFILTERED),
        (params(top_k=VOCAB), Method.UNFILTERED),
        (params(top_k=VOCAB, top_p=0.5), Method.SORTED),
    ],
    ids=repr,
)
def test_each_row_takes_the_cheapest_exact_method(p: SamplingParams, method: Method) -> None:
    assert method_of(p, VOCAB) == method


def test_tokens_that_tie_with_the_kth_stay_as_in_transformers() -> None:
    logits = torch.full((1, VOCAB), -1.0)
    logits[0, [5, 50, 100, 200]] = torch.tensor([2.0, 1.0, 1.0, 1.0])
    p = params(top_k=2)
    assert set(transformers_probabilities(logits, p, [0]).nonzero()[:, 0].tolist()) == {5, 50, 100, 200}
    assert set(draw(logits.expand(200, -1), [p] * 200, list(range(200)))) == {5, 50, 100, 200}


def test_equal_tokens_at_the_edge_of_top_p_stay_together() -> None:
    logits = torch.full((1, VOCAB), float("-inf"))
    logits[0, [3, 4, 5]] = 1.0
    assert set(draw(logits.expand(200, -1), [params(top_p=0.1)] * 200, list(range(200)))) == {3, 4, 5}


@pytest.mark.parametrize("p", [params(top_k=40, top_p=0.0), params(top_p=0.0), params(top_p=1e-30)], ids=repr)
def test_the_most_likely_token_always_stays(p: SamplingParams) -> None:
    logits = some_logits()
    assert set(draw(logits.expand(50, -1), [p] * 50, list(range(50)))) == {int(logits.argmax())}


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45])
@pytest.mark.parametrize("changes", [{}, {"top_k": 40}, {"top_p": 0.9}])
def test_a_temperature_near_zero_is_greedy_and_never_overflows(temperature: float, changes: dict[str, float]) -> None:
    logits = some_logits() * 100
    drawn = draw(logits.expand(20, -1), [params(temperature=temperature, **changes)] * 20, list(range(20)))
    assert set(drawn) == {int(logits.argmax())}


def test_excluded_logits_are_never_drawn() -> None:
    logits = some_logits()
    logits[0, 100:] = float("-inf")
    for p in (params(temperature=5.0), params(top_p=0.99, temperature=5.0), params(top_k=64, temperature=5.0)):
        assert max(draw(logits.expand(300, -1), [p] * 300, list(range(300)))) < 100


def test_seed_and_position_both_change_the_draw() -> None:
    logits = torch.zeros(64, 10_000)
    by_position = draw(logits, [params(seed=1)] * 64, list(range(64)))
    by_seed = draw(logits, [params(seed=seed) for seed in range(64)], [5] * 64)
    assert len(set(by_position)) > 60
    assert len(set(by_seed)) > 60
    assert draw(logits, [params(seed=1)] * 64, list(range(64))) == by_position


def test_neighbouring_seeds_and_positions_share_no_draws() -> None:
    """(seed, position + 1) must not be (seed + 1, position): answers would repeat each other, shifted."""
    logits = torch.zeros(100, 10_000)
    first = draw(logits, [params(seed=7)] * 100, list(range(100)))
    second = draw(logits, [params(seed=8)] * 100, list(range(100)))
    for shift in range(-3, 4):
        pairs = zip(first[3:-3], second[3 + shift : 97 + shift], strict=True)
        assert sum(a == b for a, b in pairs) <= 1


def test_the_noise_is_standard_gumbel() -> None:
    keys = row_keys(torch.arange(50), torch.arange(50) * 3)
    noise = gumbel(keys, torch.arange(20_000)).double()
    assert noise.isfinite().all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.005)
    assert float(noise.var()) == pytest.approx(torch.pi**2 / 6, abs=0.02)
    # Large values decide who wins: their tail is checked on its own.
    for threshold in (2.0, 5.0, 8.0):
        expected = 1 - float(torch.exp(-torch.exp(torch.tensor(-threshold))))
        assert float((noise > threshold).double().mean()) == pytest.approx(expected, rel=0.1)


def test_the_noise_of_rows_and_of_tokens_is_uncorrelated() -> None:
    noise = gumbel(row_keys(torch.arange(40), torch.zeros(40, dtype=torch.int64)), torch.arange(5000)).double()
    correlation = torch.corrcoef(noise)
    assert float((correlation - torch.eye(40)).abs().max()) < 0.08
    shifted = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))[0, 1]
    assert abs(float(shifted)) < 0.02


@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(0, 40_000), token=st.integers(0, 200_000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_noise_is_the_published_hash_of_seed_position_and_token(seed: int, position: int, token: int) -> None:
    """In whole numbers, so that another implementation (a GPU kernel) can be held to the same answers."""
    state = splitmix64(splitmix64(seed) + position * 0x9E3779B97F4A7C15)
    bits = fmix32(fmix32(token ^ (state & 0xFFFFFFFF)) ^ (state >> 32)) & 0x7FFFFFFF
    expected = -math.log(-math.log1p(-min((bits + 0.5) * 2**-31, 1 - 2**-24)))
    [[noise]] = gumbel(row_keys(torch.tensor([seed]), torch.tensor([position])), torch.tensor([token])).tolist()
    assert noise == pytest.approx(expected, rel=1e-5, abs=1e-5)


def splitmix64(x: int) -> int:
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def fmix32(x: int) -> int:
    mask = (1 << 32) - 1
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
    return x ^ (x >> 16)
