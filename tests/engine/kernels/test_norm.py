"""Residual add and RMSNorm against float64."""

import pytest
import torch

from tests.engine.kernels import exact
from tests.engine.kernels.conftest import ROWS, Subject

EPS = 1e-5
SHAPES = [(1, 4096), (2, 64), (3, 5), (7, 576), *((rows, width) for width in (129, 1000) for rows in ROWS)]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_each_row_is_scaled_by_its_own_root_mean_square(
    subject: Subject, rows: int, width: int, has_residual: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    x = (torch.randn(rows, width) * torch.logspace(-1, 2, rows)[:, None]).to(subject.device, dtype)
    residual = torch.randn(rows, width).to(subject.device, dtype) if has_residual else None
    weight = torch.randn(width).to(subject.device, dtype)
    normed, total = subject.ops.add_rms_norm(x, residual, weight, EPS)
    assert exact.error(normed, exact.add_rms_norm(x, residual, weight, EPS)) < exact.TOLERANCE[dtype]
    summed = x.double() if residual is None else x.double() + residual.double()
    assert exact.error(total, summed) < exact.TOLERANCE[dtype]


def test_the_inputs_stay_as_they_were(subject: Subject) -> None:
    x, residual, weight = (torch.randn(3, 64, device=subject.device) for _ in range(3))
    before = x.clone(), residual.clone()
    subject.ops.add_rms_norm(x, residual, weight[0], EPS)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_a_row_of_zeros_stays_zero_and_a_nan_stays_in_its_row(subject: Subject) -> None:
    x = torch.ones(3, 70, device=subject.device)
    x[0], x[1, 69] = 0.0, torch.nan
    normed, _ = subject.ops.add_rms_norm(x, None, torch.ones(70, device=subject.device), EPS)
    assert torch.equal(normed[0], torch.zeros_like(normed[0]))
    assert normed[1].isnan().all()
    assert torch.allclose(normed[2], torch.ones_like(normed[2]))
