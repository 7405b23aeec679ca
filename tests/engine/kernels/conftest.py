"""Three ways to run every kernel test: torch's own operations, Triton's interpreter on a CPU, compiled on a GPU.

Whether Triton interprets is settled when it is imported, so it is said here, before that. On a GPU host the compiled
kernels are tested; `TRITON_INTERPRET=1` tests the interpreted ones there.
"""

import os
import sys
from dataclasses import dataclass

import pytest
import torch

from service.engine.defaults import Quantization
from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import AttentionTuning, LinearTuning, Tuning, tuning_for
from tests.support.gpu import has_gpu_device

HAS_GPU = has_gpu_device() and torch.cuda.is_available()
if not HAS_GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETS and "triton" in sys.modules:
    assert sys.modules["triton"].knobs.runtime.interpret, "Triton was imported before it was told to interpret"

INTERPRETED_ROWS = LinearTuning(block_n=64, block_k=256, warps=1, stages=1)
INTERPRETED = Tuning(
    source="large tiles: the interpreter pays per operation, not per element",
    attention=AttentionTuning(tile=64, programs_per_multiprocessor=3),
    one_row=LinearTuning(block_n=64, block_k=256, warps=1, stages=1),
    rows=dict.fromkeys((16, 32, 64, 128, 256), INTERPRETED_ROWS),
    int8_rows=dict.fromkeys((16, 32, 64, 128, 256), INTERPRETED_ROWS),
)


@dataclass(frozen=True)
class Subject:
    """A set of operations to test. bf16 products are beyond the interpreter, which keeps bf16 as bare integers."""

    ops: Ops
    device: torch.device
    multiplies_bf16: bool = True

    def skip_unless_it_multiplies(self, dtype: torch.dtype) -> None:
        if dtype == torch.bfloat16 and not self.multiplies_bf16:
            pytest.skip("the interpreter has no bf16 product")


@pytest.fixture(autouse=True)
def every_test_has_one_thread(one_thread: None) -> None: ...


@pytest.fixture(params=["torch", "interpreter", pytest.param("compiled", marks=pytest.mark.gpu)])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "torch":
        return Subject(Ops(), torch.device("cpu"))
    return kernels(request.param)


@pytest.fixture(params=["interpreter", pytest.param("compiled", marks=pytest.mark.gpu)])
def kernel_subject(request: pytest.FixtureRequest) -> Subject:
    """The kernels alone, for what torch's operations have no part in."""
    return kernels(request.param)


def kernels(how: str, multiprocessors: int = 4, quantization: Quantization = "none") -> Subject:
    """Ours for a GPU of so many multiprocessors: the more, the more pieces an attention is divided into."""
    if how == "compiled" and (INTERPRETS or not HAS_GPU):
        pytest.skip("needs an NVIDIA GPU and TRITON_INTERPRET unset")
    if how == "interpreter" and not INTERPRETS:
        pytest.skip("interpreted kernels are tested with TRITON_INTERPRET=1")
    pytest.importorskip("triton")
    from service.engine.kernels.candidates import candidates, with_judged_rows

    tuning = tuning_for(torch.cuda.get_device_capability()) if how == "compiled" else INTERPRETED
    wanted = candidates(tuning, multiprocessors, quantization)
    fields = {name: kernel for candidate in wanted for name, kernel in candidate.fields.items()}
    device = torch.device("cuda" if how == "compiled" else "cpu")
    return Subject(with_judged_rows(Ops(**fields), tuning.tiles(quantization), quantization), device, how == "compiled")


ROWS = range(1, 18)
"""Every number of rows up to one more than the smallest tile of a product takes."""

HEADS = [(8, 8), (9, 3), (32, 2)]
"""Query heads and KV heads."""

HEAD_DIMS = [64, 128]

LONGEST = 5000
"""Tokens of a context."""

MOST_EXACT = [("interpreter", torch.float32), pytest.param("compiled", torch.float16, marks=pytest.mark.gpu)]
"""Where one type has to do: the most exact of the interpreter's, and of those that every GPU serves."""

FUSED = [(False, False), (True, False), (False, True), (True, True)]
"""With a bias or without; gated or not."""


def operands(
    subject: Subject, rows: int, width: int, depth: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and bias of a product."""
    torch.manual_seed(rows * width)
    x, weight, bias = torch.randn(rows, depth), torch.randn(width, depth) * depth**-0.5, torch.randn(width)
    return x.to(subject.device, dtype), weight.to(subject.device, dtype), bias.to(subject.device, dtype)
