"""`plan_decode`, `decode_attention` and `rotating_attention` of `Ops`: one query a sequence, over its own blocks."""

import torch

from service.engine.kernels.attention_plan import WorkPlan, plan_work
from service.engine.kernels.batch import DecodeBatch
from service.engine.kernels.ops import Angles, Caches, Heads
from service.engine.kernels.paged_attention import attend
from service.engine.kernels.paged_rows import PagedRows
from service.engine.kernels.rotating_attention import attend_rotating
from service.engine.kernels.tuning import AttentionTuning


class PagedDecodeAttention:
    """Plan, attend, merge. head_dim and block size are powers of two of at least 16; anything else fails to compile."""

    def __init__(self, tuning: AttentionTuning, multiprocessors: int, *, overlaps: bool = False) -> None:
        self._tuning = tuning
        self._multiprocessors = multiprocessors
        self._overlaps = overlaps

    def plan(
        self, block_tables: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, k_cache: torch.Tensor
    ) -> DecodeBatch:
        """See `ops.PlanDecode`."""
        work = plan_work(lengths, k_cache, self._tuning, self._multiprocessors, overlaps=self._overlaps)
        return DecodeBatch(block_tables, slots, lengths, work)

    def attend(
        self, q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        """See `ops.DecodeAttention`; q may be a view of the fused projection, the caches are contiguous."""
        rows, work = _planned(batch)
        return attend(q, k_cache, v_cache, rows, work, scale, self._tuning, overlaps=self._overlaps)

    def rotate_and_attend(
        self,
        heads: Heads,
        angles: Angles,
        caches: Caches,
        batch: DecodeBatch,
        scale: float,
    ) -> torch.Tensor:
        """See `ops.RotatingAttention`; heads are views of one projection, the caches are contiguous."""
        rows, work = _planned(batch)
        return attend_rotating(heads, angles, caches, rows, work, scale, self._tuning, overlaps=self._overlaps)


def _planned(batch: DecodeBatch) -> tuple[PagedRows, WorkPlan]:
    assert batch.work is not None
    return PagedRows(batch.block_tables, batch.slots, batch.lengths), WorkPlan(*batch.work)
