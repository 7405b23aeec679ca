"""Attention of chunks over paged KV against float64, and which attention a step's chunks get."""

from collections.abc import Iterator

import pytest
import torch

from service.engine.attention import Attention, ChunkSpan, PagedCache
from service.engine.cuda.paths import LONG_CONTEXT, PrefillBySize
from service.engine.kernels.tuning import AttentionTuning
from tests.engine.kernels import exact
from tests.engine.kernels.conftest import HEAD_DIMS, HEADS, INTERPRETS, LONGEST, MOST_EXACT, Subject, kernels
from tests.engine.kernels.test_selfcheck import CPU
from tests.support.plans import CPU as DEVICE

SIZE = 64
# heads, kv_heads, head_dim, chunks by their first and last position + 1: whole rows of eight queries and rests of them,
# inside a block and over its border, with contexts of nothing and of some tokens
CASES: list[tuple[int, int, int, list[tuple[int, int]]]] = [
    (32, 2, 64, [(0, 1)]),
    (32, 2, 64, [(0, 8), (0, 9), (3, 5)]),
    (32, 2, 128, [(120, 141)]),
    (9, 3, 64, [(60, 70), (0, 64), (127, 129)]),
    (8, 8, 64, [(0, 3), (63, 64)]),
]
RAGGED = [(0, 1), (60, 70), (127, 130), (700, 705), (LONGEST - 8, LONGEST)]


@pytest.fixture(
    params=[
        ("interpreter", torch.float32),
        ("interpreter", torch.float16),
        pytest.param(("compiled", torch.float16), marks=pytest.mark.gpu),
        pytest.param(("compiled", torch.bfloat16), marks=pytest.mark.gpu),
    ],
    ids=str,
)
def served(request: pytest.FixtureRequest) -> tuple[Subject, torch.dtype]:
    """In fp32 its tiles are too large for many a GPU, which does not serve that either."""
    how, dtype = request.param
    return kernels(how), dtype


class Problem:
    """Sequences in shuffled blocks; NaN in every place that none of them wrote."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        bounds: list[tuple[int, int]],
        subject: Subject,
        dtype: torch.dtype,
    ) -> None:
        torch.manual_seed(len(bounds))
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.ends = [end for _, end in bounds]
        used = [-(-end // SIZE) for end in self.ends]
        order = torch.randperm(sum(used)) + 1
        self.kv = [torch.randn(2, end, kv_heads, head_dim).to(dtype) for end in self.ends]
        caches = torch.full((2, 1 + sum(used), SIZE, kv_heads, head_dim), torch.nan, dtype=dtype)
        self.spans, first = [], 0
        for (start, end), blocks, kv in zip(bounds, order.split(used), self.kv, strict=True):
            at = (blocks[:, None] * SIZE + torch.arange(SIZE)).flatten()[:end]
            caches.flatten(1, 2).index_copy_(1, at, kv)
            self.spans.append(ChunkSpan(first, first + end - start, end, blocks.int().to(subject.device)))
            first += end - start
        self.qkv = torch.randn(first, heads + 2 * kv_heads, head_dim).to(dtype)
        self.cache = PagedCache.__new__(PagedCache)
        self.cache.block_size, self.cache.device = SIZE, subject.device
        self.cache.keys, self.cache.values = [caches[0].to(subject.device)], [caches[1].to(subject.device)]
        self.device = subject.device

    def attended(self, factory: object) -> torch.Tensor:
        places = torch.zeros(self.qkv.shape[0], dtype=torch.int64, device=self.device)
        attention: Attention = factory(self.cache, places, self.spans)  # type: ignore[operator]
        q, k, v = self.qkv.to(self.device).split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return attention(0, q, k, v).cpu()

    def exact(self) -> Iterator[tuple[int, torch.Tensor]]:
        for span, kv in zip(self.spans, self.kv, strict=True):
            for row in range(span.first, span.last):
                seen = span.start + row - span.first + 1
                q = self.qkv[row, : self.heads]
                yield row, exact.attention(q, kv[0, :seen], kv[1, :seen], self.head_dim**-0.5)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "bounds"), CASES)
def test_each_query_sees_its_own_past_and_nothing_else(
    served: tuple[Subject, torch.dtype], heads: int, kv_heads: int, head_dim: int, bounds: list[tuple[int, int]]
) -> None:
    subject, dtype = served
    problem = Problem(heads, kv_heads, head_dim, bounds, subject, dtype)
    result = problem.attended(subject.ops.chunk_attention)
    assert result.shape == (problem.qkv.shape[0], heads, head_dim)
    for row, expected in problem.exact():
        assert exact.error(result[row], expected) < 2 * exact.TOLERANCE[dtype], row


@pytest.mark.slow
@pytest.mark.parametrize(("how", "dtype"), MOST_EXACT)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_contexts_of_all_lengths_are_seen_to_their_ends(
    heads: int, kv_heads: int, head_dim: int, how: str, dtype: torch.dtype
) -> None:
    subject = kernels(how, multiprocessors=16)  # enough for 8 KV heads to divide the long one
    problem = Problem(heads, kv_heads, head_dim, RAGGED, subject, dtype)
    result = problem.attended(subject.ops.chunk_attention)
    for row, expected in problem.exact():
        assert exact.error(result[row], expected) < 2 * exact.TOLERANCE[dtype], row


def test_a_query_that_sees_nothing_of_a_piece_takes_nothing_from_it(served: tuple[Subject, torch.dtype]) -> None:
    """A row over a tile's border, divided so that its last piece is for the later queries alone."""
    subject, dtype = served
    many = kernels("interpreter" if subject.device.type == "cpu" else "compiled", multiprocessors=132)
    problem = Problem(8, 2, 64, [(2 * SIZE - 4, 2 * SIZE + 4)], subject, dtype)
    result = problem.attended(many.ops.chunk_attention)
    for row, expected in problem.exact():
        assert exact.error(result[row], expected) < 2 * exact.TOLERANCE[dtype], row


def by_size(heads: int = 32, multiprocessors: int = 132) -> PrefillBySize:
    def named(name: str) -> object:
        return lambda cache, places, spans: name

    return PrefillBySize(named("wide"), named("narrow"), heads, multiprocessors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bounds", "serves"),
    [
        ([(0, 100)], "wide"),
        ([(0, LONG_CONTEXT - 1)], "wide"),
        ([(LONG_CONTEXT - 20, LONG_CONTEXT)], "narrow"),
        ([(30_000, 30_016)], "narrow"),
        ([(30_000, 30_512)], "narrow"),
        ([(30_000, 30_513)], "wide"),
        ([(0, 5), (8000, 8100), (0, 7)], "narrow"),
        ([(8000, 8100)] * 5, "wide"),
        ([(0, 2048)], "wide"),
        # A crowd's own few tokens after one long beginning: fifteen of sixteen queries of a flash program are padding.
        ([(30_000, 30_008)] * 128, "narrow"),
        ([(30_000, 30_040)] * 25, "narrow"),
        ([(30_000, 30_041)] * 25, "wide"),
        ([(30_000, 30_009)] * 256, "narrow"),
        ([(30_000, 30_009)] * 257, "wide"),  # more rows than the plan is compiled for
        ([(500, 508)] * 128, "wide"),
        ([(0, 1900), *[(4000, 4008)] * 10], "wide"),
    ],
)
def test_few_queries_over_long_contexts_are_divided_and_others_are_flashs(
    bounds: list[tuple[int, int]], serves: str
) -> None:
    blocks = torch.zeros(1, dtype=torch.int32)
    spans, first = [], 0
    for start, end in bounds:
        spans.append(ChunkSpan(first, first + end - start, end, blocks))
        first += end - start
    cache = PagedCache(CPU.config, 2, 16, DEVICE, torch.float32)
    assert by_size()(cache, torch.zeros(first), spans) == serves  # type: ignore[comparison-overlap]


def planned(lengths: list[int], multiprocessors: int) -> tuple[list[int], int]:
    """Items of each row, and tiles of an item, on an H100's tuning for two KV heads."""
    from service.engine.kernels.attention_plan import plan_work

    cache, tuning = torch.zeros(1, SIZE, 2, 16), AttentionTuning(tile=SIZE, programs_per_multiprocessor=1)
    work = plan_work(torch.tensor(lengths, dtype=torch.int32), cache, tuning, multiprocessors, in_one_round=True)
    _, _, first_item, tiles_per_item = work
    return first_item.diff().tolist(), int(tiles_per_item)


@pytest.mark.skipif(not INTERPRETS, reason="the interpreter plans like the GPU")
@pytest.mark.parametrize("context", [2000, 7000, 30_000])
@pytest.mark.parametrize("tokens", [16, 32, 40, 64, 96, 128])
def test_a_chunk_is_over_in_one_round_of_the_gpu(tokens: int, context: int) -> None:
    """A few programs more than it has multiprocessors would take it as long again."""
    multiprocessors, kv_heads = 132, 2
    lengths = [context - tokens + last for last in range(8, tokens + 1, 8)]
    items, tiles_per_item = planned(lengths, multiprocessors)
    assert sum(items) * kv_heads <= multiprocessors
    tiles = sum(-(-length // SIZE) for length in lengths)
    ideal = tiles * kv_heads / multiprocessors
    assert tiles_per_item <= 1.15 * ideal + 1
    assert all(count * tiles_per_item >= -(-n // SIZE) for count, n in zip(items, lengths, strict=True))


@pytest.mark.skipif(not INTERPRETS, reason="the interpreter plans like the GPU")
def test_a_long_context_among_many_short_ones_is_divided_whatever_that_takes() -> None:
    """In one round it would be in a few pieces, and the others long done."""
    items, tiles_per_item = planned([30_000, *[100] * 64], 132)
    assert tiles_per_item == 10
    assert items == [47, *[1] * 64]
