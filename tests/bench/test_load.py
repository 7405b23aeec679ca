"""Requests driven through a core: no two alike, and their times are those of their tokens."""

import pytest

from tests.bench.load import Prompts, Timeline, percentile, rates_of


def test_percentiles_and_gaps_are_those_of_the_tokens() -> None:
    line = Timeline(1.0, [5, 6, 7], [1.5, 1.75, 2.5])
    assert (line.ttft, line.gaps) == (0.5, [0.25, 0.75])
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0] * 99 + [9.0], 0.99) == 9.0
    assert percentile([], 0.5) == 0.0


def test_no_two_prompts_begin_alike() -> None:
    prompts = Prompts(1000)
    first = [tuple(request.prompt_ids[:4]) for request in prompts.spread(20, (4, 64), 3)]
    assert len(set(first)) == 20
    assert {len(r.prompt_ids) for r in prompts.spread(3, (10, 20), 1)} == {10, 15, 20}


def test_the_rates_of_requests_are_those_of_their_tokens() -> None:
    quick, slow = Timeline(0.0, [1, 2, 3], [1.0, 1.5, 2.5]), Timeline(0.0, [1], [3.0])
    rates = rates_of([quick, slow], took=4.0)
    assert rates.tokens_per_second == 1.0
    assert (rates.ttft_p50, rates.ttft_p99) == (2.0, 3.0)
    assert (rates.tpot_p50, rates.tpot_p99) == pytest.approx((1.0, 1.0))
