"""Products of the model's matrices against torch in fp32, and those that a norm is fused with."""

from collections.abc import Sequence

import torch

from service.engine.config import ModelConfig
from service.engine.kernels import torch_ops
from service.engine.kernels.candidate import ServedShapes, require_close
from service.engine.kernels.checks import EPS, QUIET
from service.engine.kernels.ops import AddNorm, Affine, Ops
from service.engine.quantization import Matrix

MatrixShape = tuple[int, int, bool]
"""Rows, columns, and whether the model gates its product."""
MOST_WEIGHT_ROWS = 32_768
"""The vocabulary's matrix is checked on its first rows: the others are handled alike and cost memory."""


def check_linear(ops: Ops, shapes: ServedShapes, rows: Sequence[int]) -> None:
    """Every matrix of the model, gated where the model gates, and with a bias if any of them has one."""
    for width, depth, gated in matrices(shapes.config):
        weight = shapes.matrix(width, depth)
        x = shapes.random(max(rows), depth)
        for bias in _biases(shapes, width):
            expected = _linear(x.float(), weight, bias, gated)
            for count in rows:
                name = f"a {width} x {depth} product of {count} rows"
                require_close(name, ops.linear(x[:count], weight, bias, gated), expected[:count], shapes.dtype)


def check_chain(ops: Ops, shapes: ServedShapes, rows: Sequence[int]) -> None:
    """Output with gate and up, and down with QKV; a quiet residual stream, too; biases as in `check_linear`.

    The products of these rows are to be the kernel's, else nothing is checked.
    """
    for first, second in chained(shapes.config):
        into, out_of = shapes.matrix(*first[:2]), shapes.matrix(*second[:2])
        for biases in zip(_biases(shapes, first[0]), _biases(shapes, second[0]), strict=True):
            affine = Affine(into, biases[0]), Affine(out_of, biases[1])
            for count in rows:
                _check_chain(ops, shapes, *affine, count, gated=second[2])
            _check_chain(ops, shapes, *affine, max(rows), gated=second[2], spread=QUIET)


def _check_chain(
    ops: Ops, shapes: ServedShapes, first: Affine, second: Affine, rows: int, *, gated: bool, spread: float = 1.0
) -> None:
    first = Affine(first.weight, None if first.bias is None else first.bias * spread)
    depth, hidden = first.weight.shape[1], shapes.config.hidden_size
    x, residual = shapes.random(rows, depth, spread=spread), shapes.random(rows, hidden, spread=spread)
    norm = AddNorm(residual, shapes.random(hidden) + 1, EPS)
    result, total = ops.chain(x, first, norm, second, gated)
    wide = _linear(x.float(), *first, False), residual.float(), norm.weight.float()
    normed, expected_total = torch_ops.add_rms_norm(*wide, EPS)
    name = f"a chain to a {second.weight.shape[0]} x {second.weight.shape[1]} product of {rows} rows"
    require_close(name, result, _linear(normed, *second, gated), shapes.dtype)
    require_close(f"{name}: its residual", total, expected_total, shapes.dtype)


def check_norm_linear(ops: Ops, shapes: ServedShapes) -> None:
    """One row of the matrices that a norm precedes: QKV also without a residual, as in the first layer, and quiet; with
    biases as in `check_linear`."""
    qkv, _, gate_up, *_ = matrices(shapes.config)
    for (width, depth, gated), has_residual in ((qkv, False), (qkv, True), (gate_up, True)):
        weight = shapes.matrix(width, depth)
        for bias in _biases(shapes, width):
            _check_norm_linear(ops, shapes, weight, bias, gated=gated, has_residual=has_residual)


def _check_norm_linear(
    ops: Ops, shapes: ServedShapes, weight: Matrix, bias: torch.Tensor | None, *, gated: bool, has_residual: bool
) -> None:
    hidden = shapes.config.hidden_size
    norm_weight = shapes.random(hidden) + 1
    residual = shapes.random(2, hidden)[1:] if has_residual else None
    x = shapes.random(1, hidden, spread=1.0 if has_residual else QUIET)
    result, total = ops.norm_linear(x, residual, norm_weight, EPS, weight, bias, gated)
    wide = None if residual is None else residual.float()
    normed, expected_total = torch_ops.add_rms_norm(x.float(), wide, norm_weight.float(), EPS)
    require_close("norm_linear", result, _linear(normed, weight, bias, gated), shapes.dtype)
    require_close("norm_linear's residual", total, expected_total, shapes.dtype)


def _biases(shapes: ServedShapes, width: int) -> list[torch.Tensor | None]:
    c = shapes.config
    return [None, shapes.random(width)] if c.qkv_bias or c.o_bias or c.mlp_bias else [None]


def matrices(c: ModelConfig, most_rows: int = MOST_WEIGHT_ROWS) -> list[MatrixShape]:
    """Each weight matrix: QKV, output, gate and up, down, and the head's first rows."""
    qkv, output, gate_up, down = c.layer_matrices
    head = min(c.vocab_size, most_rows), c.hidden_size
    return [(*qkv, False), (*output, False), (*gate_up, True), (*down, False), (*head, False)]


def chained(c: ModelConfig) -> list[tuple[MatrixShape, MatrixShape]]:
    """Those that a residual sum and a norm stand between."""
    qkv, output, gate_up, down, _ = matrices(c)
    return [(output, gate_up), (down, qkv)]


def _linear(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool) -> torch.Tensor:
    numbers = weight.float() if isinstance(weight, torch.Tensor) else weight.dequantized(torch.float32)
    product = torch.nn.functional.linear(x, numbers, None if bias is None else bias.float())
    return torch_ops.silu_mul(product) if gated else product
