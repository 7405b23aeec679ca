"""Rows of an attention over paged KV: whose KV each reads, and which queries it has."""
# mypy: disable-error-code="untyped-decorator"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

PER_ROW = ["slots", "lengths", "first_query", "query_count"]
"""One number a row: where such a tensor begins may hang on how many rows there are, and must not have a kernel compiled
anew while somebody waits."""


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of an attention. Row r reads the KV blocks from block_tables[slots[r], 0] on, and has `query_count[r]`
    queries from `first_query[r]` on, at most `queries`; None of both: one each."""

    block_tables: torch.Tensor  # int32 [S, W], or [N] with slots that are places in it
    slots: torch.Tensor  # int64 [rows]
    lengths: torch.Tensor  # int32 [rows]: KV positions that the row's last query sees
    queries: int = 1
    first_query: torch.Tensor | None = None  # int64 [rows]
    query_count: torch.Tensor | None = None  # int32 [rows]

    @property
    def queries_of_each(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as a kernel takes them, which reads neither where each row has one query."""
        return (
            self.lengths if self.first_query is None else self.first_query,
            self.lengths if self.query_count is None else self.query_count,
        )


@triton.jit
def queries_of(row, first_query, query_count, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The first of a row's queries and how many they are: one, the row's own, in a decode."""
    if QUERIES == 1:
        return row, row * 0 + 1
    return tl.load(first_query + row).to(tl.int64), tl.load(query_count + row).to(tl.int64)
