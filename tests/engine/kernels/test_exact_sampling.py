"""The reference of a draw: its hashes as published, and its tolerance so narrow that it allows nothing else."""

import math

import pytest
import torch

from service.engine.base import SamplingParams
from tests.engine.kernels import exact_sampling


def test_the_hashes_give_their_published_numbers() -> None:
    assert exact_sampling.splitmix(0) == 0xE220A8397B1DCDAF
    assert exact_sampling.splitmix(exact_sampling.GOLDEN) == 0x6E789E6AA1B965F4
    assert exact_sampling.fmix(torch.tensor([0, 1])).tolist() == [0, 0x514E28B7]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_k=2, top_p=1.0),
        SamplingParams(top_k=0, top_p=0.3),
        SamplingParams(top_k=0, top_p=1.0, temperature=0.3),
        SamplingParams(top_k=0, top_p=0.99, temperature=5.0),
    ],
)
def test_hardly_ever_is_there_a_choice(params: SamplingParams) -> None:
    torch.manual_seed(0)
    logits, seen = torch.randn(200, 300) * 3, torch.rand(200, 300) < 0.5
    allowed = [exact_sampling.allowed(*row, params, n) for n, row in enumerate(zip(logits, seen, strict=True))]
    counts = torch.stack(allowed).sum(1)
    assert counts.min() == 1
    assert counts.sum() <= 201


def test_of_equal_tokens_at_the_edge_all_stay() -> None:
    scaled = torch.tensor([0.0, -1.0, -2.0, -1.0, -3.0]).double()
    assert exact_sampling.kept(scaled, 2, 1.0).tolist() == [True, True, False, True, False]
    assert exact_sampling.kept(scaled, 0, 0.55).tolist() == [True, True, False, True, False]
    assert exact_sampling.kept(scaled, 0, 0.5).tolist() == [True, False, False, False, False]


def test_draws_follow_their_probabilities() -> None:
    """Of four tokens, one excluded, at 4,000 positions: with only two, noise and its negative would draw alike."""
    logits, seen = torch.tensor([0.7, 0.0, 0.0, -4.0]), torch.zeros(4, dtype=torch.bool)
    params = SamplingParams(top_k=3, top_p=1.0)
    first = sum(bool(exact_sampling.allowed(logits, seen, params, n)[0]) for n in range(4000))
    assert first / 4000 == pytest.approx(math.exp(0.7) / (math.exp(0.7) + 2), abs=0.025)
