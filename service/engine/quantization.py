"""Matrices in eight bits: half the memory, and half of what a decode, which is bound by reading weights, reads.

Weights alone are rounded, to the nearest of 255 levels of their row's largest number (symmetric, a scale for each
output channel; as in Nagel et al., 2021, "A White Paper on Neural Network Quantization", section 2). Activations stay
what they are: those of language models have outliers that eight bits would not keep (Dettmers et al., 2022,
"LLM.int8()").
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

from service.engine.defaults import NUMBERS_AT_ONCE, Quantization

LEVELS = 127
"""On each side of zero."""
LEAST_SCALE = 1e-30
"""Of a row of zeros: nothing is divided by zero."""


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """`values * scales`, row by row; it stands where a tensor of that shape would."""

    values: torch.Tensor  # int8 [N, K]
    scales: torch.Tensor  # float32 [N]

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> Self:
        """One of undefined numbers."""
        values = torch.empty(rows, columns, dtype=torch.int8, device=device)
        return cls(values, torch.empty(rows, dtype=torch.float32, device=device))

    @classmethod
    def of(cls, numbers: torch.Tensor) -> Self:
        """The nearest one to `numbers` [N, K]."""
        rows, columns = numbers.shape
        return cls.empty(rows, columns, numbers.device).copy_(numbers)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def split(self, rows: int | list[int]) -> list["Int8Matrix"]:
        """Views of so many rows each, as `torch.Tensor.split`."""
        parts = zip(torch.split(self.values, rows), torch.split(self.scales, rows), strict=True)
        return [Int8Matrix(values, scales) for values, scales in parts]

    def copy_(self, numbers: torch.Tensor, non_blocking: bool = False) -> Self:
        """Round `numbers` [N, K], on whatever device, and keep them."""
        rows = _rows_at_once(self.shape)
        for part, each in zip(self.split(rows), torch.split(numbers, rows), strict=True):
            part._round(each.to(self.device, torch.float32, non_blocking=non_blocking))
        return self

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The numbers it stands for, [N, K]."""
        numbers = torch.empty(self.shape, dtype=dtype, device=self.device)
        return torch.mul(self.values, self.scales[:, None], out=numbers)

    def _round(self, numbers: torch.Tensor) -> None:
        # By a reciprocal, as CUDA divides by a number: all devices round alike.
        scales = numbers.abs().amax(dim=1).mul_(1 / LEVELS).clamp_min_(LEAST_SCALE)
        self.scales.copy_(scales)
        self.values.copy_(numbers.div(scales[:, None]).round_())


Matrix = torch.Tensor | Int8Matrix
"""A weight [N, K], whichever way it is kept."""


def kept(weight: Matrix) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What memory holds of it: its numbers [N, K], and what each row [N] of them is to be multiplied with."""
    return (weight.values, weight.scales) if isinstance(weight, Int8Matrix) else (weight, None)


def empty_matrix(
    rows: int, columns: int, quantization: Quantization, device: torch.device, dtype: torch.dtype
) -> Matrix:
    """One of undefined numbers, kept as `quantization` says, or else as `dtype`."""
    if quantization == "int8":
        return Int8Matrix.empty(rows, columns, device)
    return torch.empty(rows, columns, dtype=dtype, device=device)


def split(weight: Matrix, rows: int | list[int]) -> Sequence[Matrix]:
    """Views of so many rows each."""
    return weight.split(rows) if isinstance(weight, Int8Matrix) else torch.split(weight, rows)


def linear(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]: [T, N].

    Of a quantized one, NUMBERS_AT_ONCE are widened at a time: all of a large one would take the memory it spares.
    """
    if isinstance(weight, torch.Tensor):
        return torch.nn.functional.linear(x, weight, bias)
    rows = _rows_at_once(weight.shape)
    parts = weight.split(rows)
    biases = [None] * len(parts) if bias is None else torch.split(bias, rows)
    products = [
        torch.nn.functional.linear(x, part.dequantized(x.dtype), each) for part, each in zip(parts, biases, strict=True)
    ]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _rows_at_once(shape: torch.Size) -> int:
    """Of the fewest equal parts that have no more than NUMBERS_AT_ONCE, or a single row."""
    rows, columns = shape
    most = max(1, NUMBERS_AT_ONCE // max(columns, 1))
    return math.ceil(rows / max(1, math.ceil(rows / most)))
