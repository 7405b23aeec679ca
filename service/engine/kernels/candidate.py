"""A kernel that wants to serve, what it will meet, and the measure its results are held to.

The measure is the worst row's ||result - reference|| / ||reference||; NaN never passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from service.engine.config import ModelConfig
from service.engine.defaults import Quantization
from service.engine.kernels.ops import Ops
from service.engine.kernels.trials import NO_TRIALS, Trials
from service.engine.quantization import Int8Matrix, Matrix

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-5}
"""Some units of each type's rounding (2^-9, 2^-12, 2^-24), which sums of thousands of products do not exceed."""


class Disagreement(Exception):
    """A kernel's result is not torch's."""


@dataclass(frozen=True, slots=True)
class ServedShapes:
    """The model, cache layout, types and device that the kernels will meet; and what is noted of their trials."""

    config: ModelConfig
    block_size: int
    dtype: torch.dtype
    device: torch.device
    trials: Trials = NO_TRIALS
    quantization: Quantization = "none"

    def random(self, *shape: int, spread: float = 1.0) -> torch.Tensor:
        """Normal numbers of the served type; a fixed seed per shape, so that a verdict is repeatable."""
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator, device=self.device).mul_(spread).to(self.dtype)

    def matrix(self, width: int, depth: int) -> Matrix:
        """A weight that keeps the size of what it multiplies, kept as the served ones are."""
        numbers = self.random(width, depth, spread=depth**-0.5)
        return Int8Matrix.of(numbers) if self.quantization == "int8" else numbers

    @property
    def matrix_itemsize(self) -> int:
        """Bytes of a number of a matrix."""
        return 1 if self.quantization == "int8" else self.dtype.itemsize

    def whole(self, values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Integers on the device."""
        return torch.tensor(values, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that wants to replace fields of `Ops`. `check` gets the torch set with this kernel in it alone.

    `check` raises Disagreement when results differ, and may raise anything else a broken kernel makes it raise.
    """

    name: str
    fields: dict[str, Any]
    check: Callable[[Ops, ServedShapes], None]


def require_close(name: str, result: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    """Raises Disagreement when a row of `result` [T, ...] is farther from `reference` than `dtype` explains."""
    if result.shape != reference.shape:
        raise Disagreement(f"{name} is of shape {list(result.shape)}, not {list(reference.shape)}")
    difference = (result.double() - reference.double()).flatten(1).norm(dim=1)
    error = (difference / reference.double().flatten(1).norm(dim=1).clamp_min(1e-30)).nan_to_num(torch.inf).max().item()
    if not error <= TOLERANCE[dtype]:
        raise Disagreement(f"{name} is off by {error:.1e} (at most {TOLERANCE[dtype]:.0e})")
