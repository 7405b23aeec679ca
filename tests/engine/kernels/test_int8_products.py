"""Products with quantized weights against float64: of one row, of every tile's rows, in parts, and of more than any."""

from functools import partial
from typing import Any

import pytest
import torch

from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import Tuning
from service.engine.quantization import Int8Matrix
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import FUSED, INTERPRETED_ROWS, Subject, kernels, operands

EPS = 1e-5
# rows, width, depth: off every tile's edge, on it, narrower than a tile, in unequal parts
SHAPES = [(1, 6, 40), (2, 72, 300), (16, 64, 2304), (33, 70, 320), (64, 128, 256)]
LARGE = [(65, 34, 300), (128, 64, 2100), (200, 130, 256), (256, 64, 4100), (257, 34, 96), (600, 34, 96), (1025, 34, 40)]


@pytest.fixture(params=["torch", "interpreter", pytest.param("compiled", marks=pytest.mark.gpu)])
def int8_subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "torch":
        return Subject(Ops(), torch.device("cpu"))
    return kernels(request.param, quantization="int8")


def quantized(
    subject: Subject, rows: int, width: int, depth: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Int8Matrix, torch.Tensor, torch.Tensor]:
    """x, weight, bias; and the very numbers that the weight stands for. Its rows are of very different sizes."""
    x, weight, bias = operands(subject, rows, width, depth, torch.float32)
    matrix = Int8Matrix.of(weight * torch.logspace(-3, 2, width, device=weight.device)[:, None])
    exactly = matrix.values.double() * matrix.scales.double()[:, None]
    return x.to(dtype), matrix, bias.to(dtype), exactly


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "width", "depth"), SHAPES)
def test_a_product_of_few_rows(
    int8_subject: Subject, rows: int, width: int, depth: int, fused: bool, dtype: torch.dtype
) -> None:
    """With a bias and gated, or neither: each kernel takes a second to compile, and others have all combinations."""
    if rows > 1:
        int8_subject.skip_unless_it_multiplies(dtype)
    check_product(int8_subject, rows, width, depth, fused, dtype)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "width", "depth"), LARGE)
def test_a_product_of_a_larger_tile_or_none(
    int8_subject: Subject, rows: int, width: int, depth: int, fused: bool
) -> None:
    check_product(int8_subject, rows, width, depth, fused, torch.float16)


def check_product(subject: Subject, rows: int, width: int, depth: int, fused: bool, dtype: torch.dtype) -> None:
    x, matrix, bias, exactly = quantized(subject, rows, width, depth, dtype)
    result = subject.ops.linear(x, matrix, bias if fused else None, fused)
    expected = exact.linear(x, exactly, bias if fused else None)
    expected = exact.silu_mul(expected) if fused else expected
    assert exact.error(result, expected) < 3 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize(("has_bias", "gated"), FUSED[1:3])
def test_one_row_takes_the_norm_before_it_along(
    int8_subject: Subject, has_bias: bool, gated: bool, has_residual: bool, dtype: torch.dtype
) -> None:
    x, matrix, bias, exactly = quantized(int8_subject, 1, 34, 1000, dtype)
    residual = (torch.randn(1, 1000) * 30).to(int8_subject.device, dtype) if has_residual else None
    gain = torch.randn(1000).to(int8_subject.device, dtype)
    result, _ = int8_subject.ops.norm_linear(x, residual, gain, EPS, matrix, bias if has_bias else None, gated)
    expected = exact.linear(exact.add_rms_norm(x, residual, gain, EPS), exactly, bias if has_bias else None)
    expected = exact.silu_mul(expected) if gated else expected
    assert exact.error(result, expected) < 3 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_sums_of_half_precision_do_not_overflow(int8_subject: Subject, rows: int) -> None:
    """The integers' own sum would: 127 * 4096 is beyond fp16."""
    matrix = Int8Matrix.of(torch.full((16, 4096), 1e-3, device=int8_subject.device))
    x = torch.full((rows, 4096), 2.0, dtype=torch.float16, device=int8_subject.device)
    result = int8_subject.ops.linear(x, matrix)
    assert exact.error(result, torch.full((rows, 16), 8.192, dtype=torch.float64)) < 2e-3


@pytest.mark.parametrize(
    ("rows", "kernel"), [(1, "one_row_linear"), (256, "many_rows_linear"), (1024, "many_rows_linear"), (1025, None)]
)
def test_up_to_a_thousand_rows_need_no_wide_copy_of_the_weights(
    rows: int, kernel: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = kernels("interpreter", quantization="int8")
    widened: list[torch.dtype] = []
    dequantized = Int8Matrix.dequantized

    def noting(self: Int8Matrix, dtype: torch.dtype) -> torch.Tensor:
        widened.append(dtype)
        return dequantized(self, dtype)

    x, matrix, _, _ = quantized(subject, rows, 16, 64, torch.float16)
    monkeypatch.setattr(Int8Matrix, "dequantized", noting)
    subject.ops.linear(x, matrix)
    assert widened == ([] if kernel else [torch.float16])


@pytest.mark.parametrize(
    ("tiles", "few", "many"),
    [((16, 32, 64, 128, 256), (16, 32, 64), (128, 192, 256, 384, 512, 1024)), ((16,), (16, 24, 32, 64), ())],
)
def test_products_are_judged_beyond_the_largest_tile(
    tiles: tuple[int, ...], few: tuple[int, ...], many: tuple[int, ...]
) -> None:
    """Where a batch and a prompt beside it need more rows, widening the weights would cost as much as the batch."""
    pytest.importorskip("triton")
    from service.engine.kernels.candidates import with_judged_rows

    found = with_judged_rows(Ops(), dict.fromkeys(tiles, INTERPRETED_ROWS), "int8")
    assert (found.few_rows, found.many_rows) == (few, many)
    plain = with_judged_rows(Ops(), dict.fromkeys(tiles, INTERPRETED_ROWS), "none")
    assert max(plain.judged_rows) == max(tiles)


def test_parts_of_a_product_are_of_the_largest_tile_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = kernels("interpreter", quantization="int8")
    from service.engine.kernels.few_rows import FewRowsLinear

    launched: list[int] = []
    launch = FewRowsLinear._launch

    def noting(self: FewRowsLinear, x: torch.Tensor, *rest: Any) -> None:
        launched.append(x.shape[0])
        launch(self, x, *rest)

    monkeypatch.setattr(FewRowsLinear, "_launch", noting)
    x, matrix, _, _ = quantized(subject, 600, 16, 64, torch.float16)
    subject.ops.linear(x, matrix)
    assert launched == [256, 256, 88]


@pytest.mark.parametrize(
    ("tiles", "few", "many"),
    [((16, 32, 64, 128, 256), (2, 64), (65, 95, 128, 129, 191, 256, 1024)), ((16,), (2, 64), None)],
)
def test_a_start_proves_the_edges_of_every_tile_and_the_most_parts(
    tiles: tuple[int, ...], few: tuple[int, int], many: tuple[int, ...] | None
) -> None:
    pytest.importorskip("triton")
    from service.engine.kernels.candidates import candidates

    tuning = Tuning("", int8_rows=dict.fromkeys(tiles, INTERPRETED_ROWS))
    wanted = {candidate.name: candidate.check for candidate in candidates(tuning, 4, "int8")}
    rows = {name: check.keywords["rows"] for name, check in wanted.items() if isinstance(check, partial)}
    assert (rows["few_rows_linear"][0], rows["few_rows_linear"][-1]) == few
    assert set(range(2, min(64, max(tiles)) + 1)) <= set(rows["few_rows_linear"])
    assert (tuple(rows["many_rows_linear"]) if many else None) == many
    assert rows["few_rows_chain"][:4] == [2, 9, 11, 16], "a chain at the edges of small tiles, too"
    assert rows["few_rows_chain"][-1] == few[1]
    assert rows.get("many_rows_chain") == rows.get("many_rows_linear")
    unquantized = {candidate.name: candidate.check for candidate in candidates(Tuning(""), 4)}["many_rows_linear"]
    assert isinstance(unquantized, partial)
    assert unquantized.keywords["rows"] == [65, 95, 128, 129, 191, 256]
