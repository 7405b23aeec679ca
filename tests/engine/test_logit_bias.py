"""What is added to logits: a request's as a row of whole numbers, and the rows' added."""

import torch

from service.engine import logit_bias
from service.engine.base import SamplingParams
from service.engine.defaults import MOST_BIASED


def rows_of(*biases: dict[int, float]) -> torch.Tensor:
    rows = [logit_bias.row_of(SamplingParams(logit_bias=tuple(each.items()))) for each in biases]
    return torch.tensor(rows, dtype=torch.int32)


def test_each_row_gets_its_own_exactly_and_the_given_logits_stay_as_they_were() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    before, biases = logits.clone(), [{0: -100.0, 49: 0.1}, {}, {7: 100.0}, {0: 1e-3}]
    added = logit_bias.biased(logits, rows_of(*biases))
    expected = before.clone()
    for row, bias in enumerate(biases):
        for token, value in bias.items():
            expected[row, token] = before[row, token] + torch.tensor(value, dtype=torch.float32)
    assert torch.equal(added, expected)
    assert torch.equal(logits, before)


def test_as_many_tokens_as_may_be_are_all_kept() -> None:
    bias = {3 * place: place / 7 - 20 for place in range(MOST_BIASED)}
    row = logit_bias.row_of(SamplingParams(logit_bias=tuple(bias.items())))
    assert len(row) == logit_bias.WIDTH
    assert row[0] == MOST_BIASED
    added = logit_bias.biased(torch.zeros(1, 3 * MOST_BIASED), torch.tensor([row], dtype=torch.int32))
    expected = torch.zeros(1, 3 * MOST_BIASED)
    expected[0, ::3] = torch.tensor([*bias.values()])
    assert torch.equal(added, expected)


def test_tokens_stand_in_the_order_of_their_ids() -> None:
    row = logit_bias.row_of(SamplingParams(logit_bias=((30, 1.0), (7, -2.0), (20, 3.0))))
    assert row[:5] == [3, 7, 20, 30, 0]
    bits = torch.tensor(row[1 + MOST_BIASED :], dtype=torch.int32)
    assert bits.view(torch.float32)[:4].tolist() == [-2.0, 3.0, 1.0, 0.0]
