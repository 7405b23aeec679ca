"""Two products with a residual sum and RMSNorm between them, against float64; and who computes them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from service.engine.kernels.ops import AddNorm, Affine, Ops, Product
from service.engine.quantization import Int8Matrix
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import MOST_EXACT, ROWS, Subject, kernels, operands

EPS = 1e-5
# rows, depth, hidden, width: off every tile's edge, on it, narrower than a tile
SHAPES = [(2, 40, 70, 6), (9, 256, 64, 128), (16, 300, 130, 258), (33, 576, 200, 34), (64, 128, 256, 64)]
SHAPES += [(rows, 100, 66, 34) for rows in ROWS[1:]]
LARGE = [(65, 96, 130, 34), (200, 40, 70, 258), (256, 256, 128, 64)]
# where the GPU is small: both products are divided; and whether the second one is gated
DEEP = [((3, 2304, 2100, 64), True), ((40, 4096, 2048, 40), False), ((100, 2304, 2304, 64), True)]

Operands = tuple[torch.Tensor, Affine, AddNorm, Affine]


def chain_of(subject: Subject, shape: tuple[int, int, int, int], has_bias: bool, dtype: torch.dtype) -> Operands:
    """x, the first product's operands, the norm's, the second product's."""
    rows, depth, hidden, width = shape
    x, first, first_bias = operands(subject, rows, hidden, depth, dtype)
    residual, second, second_bias = operands(subject, rows, width, hidden, dtype)
    norm = AddNorm(residual, torch.linspace(0.3, 3.0, hidden).to(x), EPS)
    if not has_bias:
        return x, Affine(first), norm, Affine(second)
    return x, Affine(first, first_bias), norm, Affine(second, second_bias)


def expected(given: Operands, gated: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x, first, norm, second = given
    total = exact.linear(x, *first) + norm.residual.double()
    product = exact.linear(exact.add_rms_norm(total, None, norm.weight, EPS), *second)
    return exact.silu_mul(product) if gated else product, total


def check(subject: Subject, given: Operands, gated: bool, times: float = 2) -> None:
    x, first, norm, second = given
    result, total = subject.ops.chain(x, first, norm, second, gated)
    product, sums = expected(given, gated)
    assert exact.error(total, sums) < times * exact.TOLERANCE[x.dtype]
    assert exact.error(result, product) < times * exact.TOLERANCE[x.dtype]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_chain_of_few_rows(
    subject: Subject, shape: tuple[int, int, int, int], gated: bool, has_bias: bool, dtype: torch.dtype
) -> None:
    subject.skip_unless_it_multiplies(dtype)
    check(subject, chain_of(subject, shape, has_bias, dtype), gated)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shape", LARGE)
def test_a_chain_of_many_rows(subject: Subject, shape: tuple[int, int, int, int], fused: bool) -> None:
    check(subject, chain_of(subject, shape, fused, torch.float16), fused)


@pytest.mark.parametrize(("shape", "gated"), DEEP)
def test_a_chain_whose_products_are_in_parts(subject: Subject, shape: tuple[int, int, int, int], gated: bool) -> None:
    """Twice: whoever counts the parts must find the counts as the last one did, and sums have one order."""
    given = chain_of(subject, shape, True, torch.float16)
    check(subject, given, gated)
    x, first, norm, second = given
    both = [subject.ops.chain(x, first, norm, second, gated) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(("how", "dtype"), MOST_EXACT)
def test_quiet_and_loud_rows_are_normed_alike(how: str, dtype: torch.dtype, spread: float) -> None:
    """Side by side: the factor is each row's own."""
    subject = kernels(how)
    x, first, norm, second = chain_of(subject, (5, 96, 130, 34), True, dtype)
    scale = torch.tensor([1.0, spread, 1.0, spread, 1.0]).to(x)[:, None]
    check(subject, (x * scale, Affine(first.weight), norm._replace(residual=norm.residual * scale), second), False, 4)


def test_rows_do_not_reach_into_each_other(kernel_subject: Subject) -> None:
    given = chain_of(kernel_subject, (5, 96, 130, 34), True, torch.float16)
    x, first, norm, second = given
    clean, clean_total = kernel_subject.ops.chain(x, first, norm, second)
    x[2], norm.residual[4] = torch.nan, torch.nan
    spoiled, total = kernel_subject.ops.chain(x, first, norm, second)
    for result, before in ((spoiled, clean), (total, clean_total)):
        assert result[[2, 4]].isnan().all()
        assert torch.equal(result[[0, 1, 3]], before[[0, 1, 3]])


def test_a_chain_leaves_what_it_is_given_as_it_was(kernel_subject: Subject) -> None:
    """The residual is read by others, too, as long as a step may have to be computed again."""
    x, first, norm, second = chain_of(kernel_subject, (5, 96, 130, 34), True, torch.float16)
    before = x.clone(), norm.residual.clone()
    kernel_subject.ops.chain(x, first, norm, second)
    assert torch.equal(x, before[0])
    assert torch.equal(norm.residual, before[1])


def test_rows_beyond_the_largest_tile_go_part_by_part() -> None:
    subject = kernels("interpreter")
    from service.engine.kernels.few_rows import FewRowsLinear
    from tests.engine.kernels.conftest import INTERPRETED_ROWS

    given = chain_of(subject, (40, 96, 130, 34), True, torch.float32)
    chain = FewRowsLinear({16: INTERPRETED_ROWS}, 4).chain
    check(replace(subject, ops=replace(subject.ops, few_rows_chain=chain)), given, True)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("rows", [3, 40, 130])
def test_a_chain_of_quantized_matrices(rows: int, gated: bool) -> None:
    subject = kernels("interpreter", quantization="int8")
    x, first, norm, second = chain_of(subject, (rows, 256, 128, 64), True, torch.float32)
    loud = torch.logspace(-1, 1, 64)[:, None]
    matrices = Int8Matrix.of(first.weight), Int8Matrix.of(second.weight * loud)
    exactly = [matrix.values.double() * matrix.scales.double()[:, None] for matrix in matrices]
    result, total = subject.ops.chain(x, Affine(matrices[0], first.bias), norm, Affine(matrices[1], second.bias), gated)
    product, sums = expected((x, Affine(exactly[0], first.bias), norm, Affine(exactly[1], second.bias)), gated)
    assert exact.error(total, sums) < 3 * exact.TOLERANCE[torch.float32]
    assert exact.error(result, product) < 3 * exact.TOLERANCE[torch.float32]


def marked(*_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A chain that says so."""
    return torch.full((1, 1), torch.nan), torch.full((1, 1), torch.nan)


CHAINED = replace(Ops(), few_rows_chain=marked, many_rows_chain=marked)


def given_rows(rows: int) -> tuple[torch.Tensor, Affine, AddNorm, Affine, bool]:
    torch.manual_seed(rows)
    first, second = Affine(torch.randn(8, 6)), Affine(torch.randn(12, 8), torch.randn(12))
    return torch.randn(rows, 6), first, AddNorm(torch.randn(rows, 8), torch.rand(8), EPS), second, True


@pytest.mark.parametrize("rows", [2, 16, 17, 64, 65, 129, 256])
def test_few_and_many_rows_have_a_chain(rows: int) -> None:
    assert CHAINED.chain(*given_rows(rows))[0].isnan().all()
    few = replace(CHAINED, many_rows_chain=None).chain(*given_rows(rows))[0]
    assert few.isnan().all() == (rows <= 64)


@pytest.mark.parametrize("rows", [1, 257])
def test_one_row_and_more_than_all_tiles_take_go_link_by_link(rows: int) -> None:
    given = given_rows(rows)
    x, first, norm, second, gated = given
    expected = Ops().norm_linear(Ops().linear(x, *first), *norm, *second, gated)
    assert all(torch.equal(one, other) for one, other in zip(CHAINED.chain(*given), expected, strict=True))


@pytest.mark.parametrize(
    ("lost", "ungated_too"),
    [
        ({"outrun": frozenset({Product(64, 8, 6, False)})}, True),
        ({"outrun": frozenset({Product(64, 12, 8, True)})}, False),
        ({"parted": frozenset({Product(64, 12, 8, True)})}, False),
    ],
    ids=["first product", "second product", "chain"],
)
def test_a_chain_goes_link_by_link_where_that_is_faster_or_one_of_its_products_is_torchs(
    lost: dict[str, Any], ungated_too: bool
) -> None:
    ops = replace(CHAINED, **lost)
    assert not ops.chain(*given_rows(33))[0].isnan().any()
    assert ops.chain(*given_rows(32))[0].isnan().all(), "another tile's rows"
    assert ops.chain(*given_rows(33)[:-1], False)[0].isnan().any() != ungated_too, "another product"
