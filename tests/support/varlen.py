"""What stands in for torch's flash kernel on a CPU: the same arguments, answered sequence by sequence in float64."""

import itertools
from typing import Any

import torch


def plain_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    scale: float | None = None,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Flash attention over sequences side by side, or over pages; a causal mask ends where the sequence ends."""
    assert enable_gqa
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q.shape == cu_seq_k.shape, "bounds for the queries alone are refused"
    out = torch.full_like(q, torch.nan)  # what is forgotten must show, and fresh memory may hold the right answer
    bounds = cu_seq_q.tolist()
    for row, (first, last) in enumerate(itertools.pairwise(bounds)):
        assert last - first <= max_q
        keys, values = _held(k, v, row, cu_seq_k, seqused_k, block_table)
        assert keys.shape[0] <= max_k
        out[first:last] = _attend(q[first:last], keys, values, window_size == (-1, 0), scale)
    return out


def _held(k: Any, v: Any, row: int, cu_seq_k: Any, seqused_k: Any, block_table: Any) -> tuple[torch.Tensor, ...]:
    if block_table is None:
        rows = slice(int(cu_seq_k[row]), int(cu_seq_k[row + 1]))
        return k[rows], v[rows]
    assert k.shape[1] % 256 == 0, "pages of a multiple of 256"
    pages, length = block_table[row].long(), int(seqused_k[row])
    assert int(cu_seq_k[row + 1] - cu_seq_k[row]) == length
    return k[pages].flatten(0, 1)[:length], v[pages].flatten(0, 1)[:length]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool, scale: float | None) -> torch.Tensor:
    group = q.shape[1] // k.shape[1]
    keys, values = (t.double().repeat_interleave(group, dim=1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * (scale or q.shape[2] ** -0.5)
    if is_causal:
        past = torch.arange(k.shape[0]) <= torch.arange(q.shape[0])[:, None] + k.shape[0] - q.shape[0]
        scores = scores.masked_fill(~past, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
