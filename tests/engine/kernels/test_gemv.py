"""Products of one row with what is fused around them, against float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from service.engine.kernels.tuning import LinearTuning
from service.engine.quantization import Int8Matrix
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import FUSED, Subject, kernels, operands

EPS = 1e-5
# width, depth: off every tile's edge, on it, narrower than a tile
SHAPES = [(72, 256), (130, 1000), (6, 40)]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("has_bias", "gated"), FUSED)
@pytest.mark.parametrize(("width", "depth"), SHAPES)
def test_a_product_of_one_row(
    subject: Subject, width: int, depth: int, has_bias: bool, gated: bool, dtype: torch.dtype
) -> None:
    x, weight, bias = operands(subject, 1, width, depth, dtype)
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
    x, weight, bias = operands(subject, rows, width, depth, dtype)
    residual = (torch.randn(rows, depth) * 30).to(subject.device, dtype) if has_residual else None
    norm_weight = torch.randn(depth).to(subject.device, dtype)
    result, total = subject.ops.norm_linear(x, residual, norm_weight, EPS, weight, bias if has_bias else None, gated)
    expected = exact.linear(exact.add_rms_norm(x, residual, norm_weight, EPS), weight, bias if has_bias else None)
    expected = exact.silu_mul(expected) if gated else expected
    # The sum is rounded before the norm, as the residual stream stores it.
    assert exact.error(result, expected) < 3 * exact.TOLERANCE[dtype]
    summed = x.double() if residual is None else x.double() + residual.double()
    assert exact.error(total, summed) < exact.TOLERANCE[dtype]


@pytest.mark.parametrize(("depth", "columns"), [(1000, 1024), (1024, 1024), (1025, 256)])
def test_a_row_that_is_short_enough_is_read_at_once(depth: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = kernels("interpreter")
    from service.engine.kernels import gemv

    read: list[int] = []
    kernel = gemv.one_row_kernel

    class Noting:
        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            def launch(*arguments: object, **constants: Any) -> None:
                read.append(constants["BLOCK_K"])
                kernel[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(gemv, "one_row_kernel", Noting())
    tuning = LinearTuning(block_n=4, block_k=256, warps=1, stages=1, whole_row=1024)
    x, weight, bias = operands(subject, 1, 40, depth, torch.float32)
    result = gemv.OneRowLinear(tuning).linear(x, weight, bias)
    assert read == [columns]
    assert exact.error(result, exact.linear(x, weight, bias)) < 2 * exact.TOLERANCE[torch.float32]
    gemv.OneRowLinear(tuning).linear(x, Int8Matrix.of(weight), bias)
    assert read[1:] == [256], "widened, a row of eight bits takes twice the registers"


def test_the_sum_is_rounded_before_it_is_normed(subject: Subject) -> None:
    """As the residual stream keeps it: in fp16, 2048 + 1 is 2048, and what differed by one is equal."""
    width = 64
    x = (torch.arange(width) % 2 == 0).to(subject.device, torch.float16)[None]
    residual, gain = torch.full_like(x, 2048.0), torch.ones(width, dtype=torch.float16, device=subject.device)
    weight = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0).to(subject.device, torch.float16).repeat(8, 1)
    result, total = subject.ops.norm_linear(x, residual, gain, EPS, weight)
    assert (total == 2048).all()
    assert (result == 0).all()


def test_the_residual_of_a_fused_norm_is_new_memory(subject: Subject) -> None:
    """Other programs still read the old one while the sum is written."""
    x, weight, _ = operands(subject, 1, 40, 64, torch.float32)
    residual = torch.randn(1, 64, device=subject.device)
    before = x.clone(), residual.clone()
    _, total = subject.ops.norm_linear(x, residual, torch.ones(64, device=subject.device), EPS, weight)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert total.data_ptr() not in (x.data_ptr(), residual.data_ptr())
