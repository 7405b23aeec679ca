"""Every operation in float64, written for reading, and the measure of distance to it."""

import torch

TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest ||result - exact|| / ||exact|| of a row: a few roundings of the type."""

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    total = x.double() if residual is None else x.double() + residual.double()
    return total / torch.sqrt(total.square().mean(-1, keepdim=True) + eps) * weight.double()


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, dim=-1)
    return gate / (1 + torch.exp(-gate)) * up


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """x [T, heads, head_dim] turned by position * theta^(-2i / head_dim) in the plane (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    angles = positions[:, None].double() * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.polar(torch.ones_like(angles), angles)[:, None]
    plane = torch.complex(x[..., :half].double(), x[..., half:].double()) * turned
    return torch.cat((plane.real, plane.imag), dim=-1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """q [heads, head_dim] over k, v [length, kv_heads, head_dim]."""
    grouped = q.double().unflatten(0, (k.shape[1], -1))
    weights = torch.softmax(torch.einsum("kgd,tkd->kgt", grouped, k.double()) * scale, dim=-1)
    return torch.einsum("kgt,tkd->kgd", weights, v.double()).flatten(0, 1)


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """The worst row's relative distance; infinite where anything is not a number."""
    result, exact = result.double().cpu().flatten(1), exact.cpu().flatten(1)
    distance = (result - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(1e-300)
    return float(distance.nan_to_num(torch.inf).max())
