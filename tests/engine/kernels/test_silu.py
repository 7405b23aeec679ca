"""SiLU(gate) * up against float64."""

import pytest
import torch

from tests.engine.kernels import exact
from tests.engine.kernels.conftest import ROWS, Subject

SHAPES = [(1, 10240), (9, 1024), *((rows, width) for width in (7, 1025) for rows in ROWS)]


@pytest.mark.parametrize("dtype", exact.DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_the_first_half_gates_the_second(subject: Subject, rows: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    gate_up = (torch.randn(rows, 2 * width) * 4).to(subject.device, dtype)
    assert exact.error(subject.ops.silu_mul(gate_up), exact.silu_mul(gate_up)) < exact.TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # an infinity, as on a GPU
def test_large_gates_neither_overflow_nor_vanish(subject: Subject) -> None:
    gate_up = torch.tensor([[-200.0, -30.0, 30.0, 200.0, 1.0, 1.0, 1.0, 1.0]], device=subject.device)
    result = subject.ops.silu_mul(gate_up)
    assert result.isfinite().all()
    assert torch.allclose(result[0, 2:].cpu(), torch.tensor([30.0, 200.0]))
