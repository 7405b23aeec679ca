"""Products of 1 to 16 rows with what is fused around them, against float64."""

import pytest
import torch

from tests.engine.kernels import exact
from tests.engine.kernels.conftest import Subject

EPS = 1e-5
# rows, width, depth: off every tile's edge, on it, narrower than a tile
SHAPES = [(1, 72, 256), (1, 130, 1000), (2, 6, 40), (3, 200, 576), (9, 64, 256), (16, 258, 300), (17, 34, 64)]
FUSED = [(False, False), (True, False), (False, True), (True, True)]


def matrices(
    subject: Subject, rows: int, width: int, depth: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(rows * width)
    x, weight, bias = torch.randn(rows, depth), torch.randn(width, depth) * depth**-0.5, torch.randn(width)
    return x.to(subject.device, dtype), weight.to(subject.device, dtype), bias.to(subject.device, dtype)


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("has_bias", "gated"), FUSED)
@pytest.mark.parametrize(("rows", "width", "depth"), SHAPES)
def test_a_product_of_few_rows(
    subject: Subject, rows: int, width: int, depth: int, has_bias: bool, gated: bool, dtype: torch.dtype
) -> None:
    if rows > 1:
        subject.skip_unless_it_multiplies(dtype)
    x, weight, bias = matrices(subject, rows, width, depth, dtype)
    result = subject.ops.linear(x, weight, bias if has_bias else None, gated)
    expected = exact.linear(x, weight, bias if has_bias else None)
    expected = exact.silu_mul(expected) if gated else expected
    assert exact.error(result, expected) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize(("has_bias", "gated"), FUSED)
@pytest.mark.parametrize(("rows", "width", "depth"), [(1, 72, 256), (1, 34, 1000), (2, 6, 40)])
def test_a_product_takes_the_norm_before_it_along(
    subject: Subject,
    rows: int,
    width: int,
    depth: int,
    has_bias: bool,
    gated: bool,
    has_residual: bool,
    dtype: torch.dtype,
) -> None:
    if rows > 1:
        subject.skip_unless_it_multiplies(dtype)
    x, weight, bias = matrices(subject, rows, width, depth, dtype)
    residual = (torch.randn(rows, depth) * 30).to(subject.device, dtype) if has_residual else None
    norm_weight = torch.randn(depth).to(subject.device, dtype)
    result, total = subject.ops.norm_linear(x, residual, norm_weight, EPS, weight, bias if has_bias else None, gated)
    expected = exact.linear(exact.add_rms_norm(x, residual, norm_weight, EPS), weight, bias if has_bias else None)
    expected = exact.silu_mul(expected) if gated else expected
    # The sum is rounded before the norm, as the residual stream stores it.
    assert exact.error(result, expected) < 3 * exact.TOLERANCE[dtype]
    summed = x.double() if residual is None else x.double() + residual.double()
    assert exact.error(total, summed) < exact.TOLERANCE[dtype]


def test_the_residual_of_a_fused_norm_is_new_memory(subject: Subject) -> None:
    """Other programs still read the old one while the sum is written."""
    x, weight, _ = matrices(subject, 1, 40, 64, torch.float32)
    residual = torch.randn(1, 64, device=subject.device)
    before = x.clone(), residual.clone()
    _, total = subject.ops.norm_linear(x, residual, torch.ones(64, device=subject.device), EPS, weight)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert total.data_ptr() not in (x.data_ptr(), residual.data_ptr())


def test_rows_do_not_reach_into_each_other(kernel_subject: Subject) -> None:
    x, weight, _ = matrices(kernel_subject, 5, 64, 96, torch.float16)
    clean = kernel_subject.ops.linear(x, weight)
    x[2] = torch.nan
    spoiled = kernel_subject.ops.linear(x, weight)
    assert spoiled[2].isnan().all()
    assert torch.equal(spoiled[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_more_rows_than_a_tile_go_to_the_library(kernel_subject: Subject) -> None:
    ops = kernel_subject.ops
    x, weight, bias = matrices(kernel_subject, ops.few_rows + 1, 16, 32, torch.float32)
    assert torch.equal(ops.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
