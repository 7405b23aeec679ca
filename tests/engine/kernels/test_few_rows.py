"""Products of 2 to 256 rows against float64: every small count, tiles and parts off their edges, who computes them."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from service.engine.defaults import Quantization
from service.engine.kernels.ops import Ops, Product
from service.engine.kernels.tuning import LinearTuning, tuning_for
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import FUSED, ROWS, Subject, kernels, operands

# rows, width, depth: off every tile's edge, on it, narrower than a tile; the deep ones are divided into parts
SHAPES = [(2, 6, 40), (3, 200, 576), (9, 64, 256), (16, 258, 300), (33, 70, 320), (64, 128, 256)]
SHAPES += [(rows, 34, 300) for rows in ROWS[1:]]
LARGE = [(65, 34, 300), (128, 64, 256), (200, 34, 40), (256, 70, 320)]
# where the GPU is small: parts of unequal length, one tile and two
DEEP = [(2, 64, 2048), (16, 64, 2304), (5, 100, 2304), (40, 64, 4100), (64, 64, 4096), (100, 64, 4100), (256, 64, 2304)]
DEEP += [(rows, 40, 2100) for rows in ROWS[1:]]
# Of many rows, the tiles that are served would not fit with numbers of four bytes: see `Tuning.for_dtype`.
PARTS = [(*deep, dtype) for deep in DEEP for dtype in exact.DTYPES if deep[0] <= 64 or dtype == torch.float16]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("has_bias", "gated"), FUSED)
@pytest.mark.parametrize(("rows", "width", "depth"), SHAPES)
def test_a_product_of_few_rows(
    subject: Subject, rows: int, width: int, depth: int, has_bias: bool, gated: bool, dtype: torch.dtype
) -> None:
    subject.skip_unless_it_multiplies(dtype)
    x, weight, bias = operands(subject, rows, width, depth, dtype)
    result = subject.ops.linear(x, weight, bias if has_bias else None, gated)
    expected = exact.linear(x, weight, bias if has_bias else None)
    expected = exact.silu_mul(expected) if gated else expected
    assert exact.error(result, expected) < 2 * exact.TOLERANCE[dtype]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rows", "width", "depth"), LARGE)
def test_a_product_of_many_rows(subject: Subject, rows: int, width: int, depth: int, fused: bool) -> None:
    """In one type, and with all that is fused or nothing: each kernel takes a second to compile."""
    test_a_product_of_few_rows(subject, rows, width, depth, fused, fused, torch.float16)


@pytest.mark.parametrize(("rows", "width", "depth", "dtype"), PARTS)
@pytest.mark.parametrize("fused", [False, True])
def test_a_product_in_parts(
    subject: Subject, rows: int, width: int, depth: int, fused: bool, dtype: torch.dtype
) -> None:
    """Twice: whoever counts the parts must find the counts as the last product did."""
    subject.skip_unless_it_multiplies(dtype)
    x, weight, bias = operands(subject, rows, width, depth, dtype)
    expected = exact.linear(x, weight, bias if fused else None)
    expected = exact.silu_mul(expected) if fused else expected
    first, second = (subject.ops.linear(x, weight, bias if fused else None, fused) for _ in range(2))
    assert exact.error(first, expected) < 2 * exact.TOLERANCE[dtype]
    assert torch.equal(first, second), "the order of the sum is settled, whoever comes last"


@pytest.mark.parametrize("rows", [*range(18, 65), 65, 127, 128, 129, 192, 193, 255, 256])
def test_every_larger_number_of_rows_finds_its_tile(kernel_subject: Subject, rows: int) -> None:
    x, weight, _ = operands(kernel_subject, rows, 24, 48, torch.float16)
    assert exact.error(kernel_subject.ops.linear(x, weight), exact.linear(x, weight, None)) < 2e-3


@pytest.mark.parametrize(("rows", "depth"), [(5, 96), (5, 2100), (40, 96)])
def test_rows_do_not_reach_into_each_other(kernel_subject: Subject, rows: int, depth: int) -> None:
    x, weight, _ = operands(kernel_subject, rows, 64, depth, torch.float16)
    clean = kernel_subject.ops.linear(x, weight)
    others = [row for row in range(rows) if row not in (2, rows - 1)]
    x[[2, rows - 1]] = torch.nan
    spoiled = kernel_subject.ops.linear(x, weight)
    assert spoiled[[2, rows - 1]].isnan().all()
    assert torch.equal(spoiled[others], clean[others])


def test_more_rows_than_a_tile_go_to_the_library(kernel_subject: Subject) -> None:
    ops = kernel_subject.ops
    x, weight, bias = operands(kernel_subject, ops.many_rows[-1] + 1, 16, 32, torch.float32)
    assert torch.equal(ops.linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("tiles", "steps", "multiprocessors", "parts"),
    [
        (36, 64, 132, 4),  # the 8B model on an H100: QKV
        (32, 64, 132, 4),  # output
        (160, 64, 132, 1),  # gate and up
        (32, 160, 132, 4),  # down
        (1004, 64, 132, 1),  # head
        (144, 16, 132, 1),
        (2, 64, 132, 16),  # no part of less than four steps
        (1, 7, 132, 1),
        (1, 8, 132, 2),
        (10, 64, 16, 2),
    ],
)
def test_as_many_parts_as_keep_a_gpu_busy(tiles: int, steps: int, multiprocessors: int, parts: int) -> None:
    pytest.importorskip("triton")
    from service.engine.kernels.few_rows import split

    assert split(tiles, steps, multiprocessors) == (0 if parts > 1 else tiles, parts)


@pytest.mark.parametrize(
    ("tiles", "steps", "whole", "parts"),
    [
        (36, 64, 0, 3),  # the 8B model on an H100: QKV
        (32, 64, 0, 4),  # output
        (160, 64, 132, 4),  # gate and up: 28 are left over by a round
        (32, 160, 0, 4),  # down
        (1004, 64, 1004, 1),  # head
        (132, 64, 132, 1),
        (133, 64, 132, 16),  # no part of less than four steps
        (198, 64, 132, 2),
        (199, 64, 199, 1),
        (265, 64, 265, 1),  # a third round is a small part of it all
        (67, 64, 67, 1),
        (2, 64, 0, 16),
        (1, 3, 1, 1),
        (13, 41, 0, 9),
    ],
)
def test_programs_that_are_alone_run_in_full_rounds(tiles: int, steps: int, whole: int, parts: int) -> None:
    pytest.importorskip("triton")
    from service.engine.kernels.few_rows import split

    assert split(tiles, steps, 132, alone=True) == (whole, parts)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(
    ("width", "steps", "programs"),
    [(16, 41, 9), (16, 63, 11), (16, 9.1, 2), (14 * 16, 24, 12 + 2 * 6), (13 * 16 - 6, 20, 12 + 5)],
)
def test_programs_that_are_alone_add_up(width: int, steps: float, programs: int, gated: bool) -> None:
    """In parts of whatever number, none of them empty; behind tiles that are whole, and the last one is not full."""
    subject = kernels("interpreter")
    from service.engine.kernels import few_rows

    x, weight, bias = operands(subject, 5, width, int(16 * steps), torch.float32)
    tile = LinearTuning(block_n=16, block_k=16, warps=1, stages=1, alone=True)
    launched: list[tuple[int, tuple[Any, ...]]] = []
    kernel = few_rows.few_rows_kernel

    class Noting:
        def __getitem__(self, grid: tuple[int]) -> Any:
            def launch(*arguments: Any, **constants: Any) -> None:
                launched.append((grid[0], arguments[-3:]))
                kernel[grid](*arguments, **constants)

            return launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_rows, "few_rows_kernel", Noting())
        result = few_rows.FewRowsLinear({16: tile}, 12).linear(x, weight, bias, gated)
    ((count, (_, parts, depth)),) = launched
    assert count == programs
    assert (parts - 1) * depth < x.shape[1], "the last part is not empty"
    expected = exact.linear(x, weight, bias)
    assert exact.error(result, exact.silu_mul(expected) if gated else expected) < exact.TOLERANCE[torch.float32]


def test_each_tile_has_a_count_of_its_parts() -> None:
    """Side by side they come in any order: here the last part of the last tile does not come at all."""
    kernels("interpreter")
    from service.engine.kernels import few_rows

    kernel = few_rows.few_rows_kernel

    class WithoutTheLast:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return kernel[(grid[0] - 1,)]

    tile = LinearTuning(block_n=16, block_k=16, warps=1, stages=1, alone=True)
    product = few_rows.FewRowsLinear({16: tile}, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_rows, "few_rows_kernel", WithoutTheLast())
        product.linear(torch.randn(5, 256), torch.randn(32, 256), None)
    (counts,) = product._arrivals.values()
    assert counts.tolist() == [0, 2, *[0] * (len(counts) - 2)], "three parts of two tiles"


@pytest.mark.parametrize("quantization", get_args(Quantization))
def test_a_tile_that_fills_an_h100s_multiprocessor_is_alone_on_it(quantization: Quantization) -> None:
    for rows, tile in tuning_for((9, 0)).tiles(quantization).items():
        weight_bytes = 1 if quantization == "int8" else 2
        shared = tile.stages * tile.block_k * (tile.block_n * weight_bytes + rows * 2)
        sums = tile.block_n * rows // (32 * tile.warps)  # registers of each thread
        fills = 2 * shared > 227 << 10 or (quantization == "int8" and sums >= 64)
        assert tile.alone == (fills and rows > 64), rows


def test_there_is_a_count_for_every_tile_of_whatever_is_divided() -> None:
    pytest.importorskip("triton")
    from service.engine.kernels.few_rows import FewRowsLinear, split

    for multiprocessors in range(1, 140):
        counters = FewRowsLinear({}, multiprocessors)._counters(torch.device("cpu"))
        for alone in (True, False):
            divided = (tiles - split(tiles, 64, multiprocessors, alone)[0] for tiles in range(1, 300))
            assert max(divided) <= counters.numel()


def test_each_part_of_each_tile_leaves_its_sum_in_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as an interpreter runs them, they could share one: side by side they could not."""
    subject = kernels("interpreter", multiprocessors=8)
    from service.engine.kernels import few_rows

    made: list[torch.Tensor] = []
    empty = torch.empty

    def noting(*shape: Any, **options: Any) -> torch.Tensor:
        made.append(empty(*shape, **options))
        return made[-1]

    monkeypatch.setattr(few_rows.torch, "empty", noting)
    x, weight, _ = operands(subject, 5, 100, 2304, torch.float32)
    result = subject.ops.linear(x, weight)
    _, partial = made
    summed = partial.view(2, -1, 64, 16).sum(1).flatten(0, 1)[:100, :5].T
    assert partial.numel() == 2 * 2 * 64 * 16, "two tiles in two parts, rows padded to sixteen"
    assert exact.error(summed, result.double()) < 1e-6


@pytest.mark.parametrize(
    ("rows", "tile"), [(2, 16), (16, 16), (17, 32), (32, 32), (33, 64), (64, 64), (65, 128), (129, 256), (193, 256)]
)
def test_no_tile_is_larger_than_the_rows_need(rows: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger one computes the same, at the cost of the larger one."""
    subject = kernels("interpreter")
    from service.engine.kernels import few_rows

    launched: list[dict[str, object]] = []

    class Kernel:
        def __getitem__(self, grid: object) -> Any:
            return lambda *arguments, **constants: launched.append(constants)

    monkeypatch.setattr(few_rows, "few_rows_kernel", Kernel())
    x, weight, _ = operands(subject, rows, 64, 256, torch.float32)
    subject.ops.linear(x, weight)
    assert [constants["BLOCK_M"] for constants in launched] == [tile]


def marked(name: str) -> dict[str, object]:
    """A kernel that says so: its result is NaN."""

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: object, gated: bool = False) -> torch.Tensor:
        return x.new_full((x.shape[0], weight.shape[0] // (2 if gated else 1)), torch.nan)

    return {name: linear}


@pytest.mark.parametrize(
    ("rows", "tile", "kernel"),
    [
        (1, 1, "one_row_linear"),
        (2, 16, "few_rows_linear"),
        (16, 16, "few_rows_linear"),
        (17, 32, "few_rows_linear"),
        (65, 128, "many_rows_linear"),
        (129, 192, "many_rows_linear"),
        (193, 256, "many_rows_linear"),
    ],
)
def test_a_product_that_torch_won_is_torchs_and_no_other(rows: int, tile: int, kernel: str) -> None:
    x, weight = torch.randn(rows, 8), torch.randn(12, 8)
    ops = replace(Ops(), **marked(kernel))
    assert ops.linear(x, weight).isnan().all()
    won = replace(ops, outrun=frozenset({Product(tile, 12, 8, False)}))
    assert torch.equal(won.linear(x, weight), Ops().linear(x, weight))
    assert won.linear(x, weight, None, True).isnan().all(), "the gated one is another product"
    assert won.linear(x, weight[:6]).isnan().all(), "and so is one of another shape"


def test_a_won_product_takes_no_norm_along() -> None:
    x, weight, norm_weight = torch.randn(1, 8), torch.randn(12, 8), torch.randn(8)

    def fused(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1, 12), torch.nan), x

    ops = replace(Ops(), one_row_norm_linear=fused, **marked("one_row_linear"))
    assert ops.norm_linear(x, None, norm_weight, 1e-5, weight)[0].isnan().all()
    won = replace(ops, outrun=frozenset({Product(1, 12, 8, False)}))
    expected, _ = Ops().norm_linear(x, None, norm_weight, 1e-5, weight)
    assert torch.equal(won.norm_linear(x, None, norm_weight, 1e-5, weight)[0], expected)


def test_a_gpu_of_many_multiprocessors_divides_more(kernel_subject: Subject) -> None:
    """The same product in one part and in eight, up to rounding."""
    how = "interpreter" if kernel_subject.device.type == "cpu" else "compiled"
    x, weight, bias = operands(kernel_subject, 6, 64, 8192, torch.float32)
    few, many = (kernels(how, multiprocessors).ops.linear(x, weight, bias) for multiprocessors in (1, 64))
    assert exact.error(many, exact.linear(x, weight, bias)) < exact.TOLERANCE[torch.float32]
    assert exact.error(few, many.double().cpu()) < exact.TOLERANCE[torch.float32]
    assert not torch.equal(few, many), "they add up in another order"
