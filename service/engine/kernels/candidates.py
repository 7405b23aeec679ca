"""Every Triton kernel as a candidate for serving. Importing this needs Triton; nothing is compiled by it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain

from service.engine.defaults import Quantization
from service.engine.kernels.candidate import Candidate, ServedShapes
from service.engine.kernels.checks import check_add_rms_norm, check_locate, check_rotate_and_cache, check_silu_mul
from service.engine.kernels.chunk_attention import PagedChunkAttention
from service.engine.kernels.decode_attention import PagedDecodeAttention
from service.engine.kernels.decode_check import check_decode_attention, check_rotating_attention
from service.engine.kernels.few_rows import FewRowsLinear
from service.engine.kernels.gemv import OneRowLinear
from service.engine.kernels.linear_check import check_chain, check_linear, check_norm_linear
from service.engine.kernels.locate import locate
from service.engine.kernels.norm import add_rms_norm
from service.engine.kernels.ops import Ops
from service.engine.kernels.prefill_check import check_prefill
from service.engine.kernels.rope import rotate_and_cache
from service.engine.kernels.sample_check import check_sample
from service.engine.kernels.sampling import sample
from service.engine.kernels.silu import silu_mul
from service.engine.kernels.tuning import FEW, Tiles, Tuning, few_and_many

PARTS = 4
"""In so many parts of the largest tile's rows a product with a quantized matrix is computed at most. It is read again
for each; to widen it for the library costs five times its bytes, and pays from about a thousand rows on."""


def candidates(tuning: Tuning, multiprocessors: int, quantization: Quantization = "none") -> list[Candidate]:
    """The kernels with the launch choices of `tuning`, for a GPU of so many multiprocessors and matrices so kept;
    without those that it skips."""
    every = _every_candidate(tuning, multiprocessors, quantization)
    return [candidate for candidate in every if candidate.name not in tuning.skip]


def _every_candidate(tuning: Tuning, multiprocessors: int, quantization: Quantization) -> list[Candidate]:
    overlaps = tuning.overlaps
    attention = PagedDecodeAttention(tuning.attention, multiprocessors, overlaps=overlaps)
    chunks = PagedChunkAttention(tuning.chunks, multiprocessors, overlaps=overlaps)
    norm, rotate = partial(add_rms_norm, overlaps=overlaps), partial(rotate_and_cache, overlaps=overlaps)
    return [
        Candidate("add_rms_norm", {"add_rms_norm": norm}, check_add_rms_norm),
        Candidate("rotate_and_cache", {"rotate_and_cache": rotate}, check_rotate_and_cache),
        Candidate("locate", {"locate": partial(locate, overlaps=overlaps)}, check_locate),
        Candidate(
            "decode_attention",
            {"plan_decode": attention.plan, "decode_attention": attention.attend},
            check_decode_attention,
        ),
        Candidate(
            "rotating_attention",
            {"plan_decode": attention.plan, "rotating_attention": attention.rotate_and_attend},
            check_rotating_attention,
        ),
        Candidate("chunk_attention", {"chunk_attention": chunks}, _check_chunks),
        Candidate("silu_mul", {"silu_mul": partial(silu_mul, overlaps=overlaps)}, check_silu_mul),
        *_products(tuning, multiprocessors, quantization),
        Candidate("sample", {"sample": partial(sample, overlaps=overlaps)}, check_sample),
    ]


def _products(tuning: Tuning, multiprocessors: int, quantization: Quantization) -> Iterator[Candidate]:
    overlaps, settles = tuning.overlaps, tuning.settles
    one_row = OneRowLinear(tuning.one_row, overlaps=overlaps)
    yield Candidate("one_row_linear", {"one_row_linear": one_row.linear}, partial(check_linear, rows=(1,)))
    few, many = few_and_many(tuning.tiles(quantization))
    beyond = [PARTS * max(many or few)] if quantization == "int8" else []
    few_rows = FewRowsLinear(few, multiprocessors, overlaps=overlaps, settles=settles)
    rows = [*range(2, max(few) + 1), *([] if many else beyond)]
    yield Candidate("few_rows_linear", {"few_rows_linear": few_rows.linear}, partial(check_linear, rows=rows))
    edges = [2, *chain.from_iterable(map(_edges, few)), *([] if many else beyond)]
    yield Candidate("few_rows_chain", {"few_rows_chain": few_rows.chain}, partial(check_chain, rows=edges))
    if many:
        many_rows = FewRowsLinear(many, multiprocessors, overlaps=overlaps, settles=settles)
        edges = [*chain.from_iterable(map(_edges, many)), *beyond]
        yield Candidate("many_rows_linear", {"many_rows_linear": many_rows.linear}, partial(check_linear, rows=edges))
        yield Candidate("many_rows_chain", {"many_rows_chain": many_rows.chain}, partial(check_chain, rows=edges))
    yield Candidate("one_row_norm_linear", {"one_row_norm_linear": one_row.norm_linear}, check_norm_linear)


def with_judged_rows(ops: Ops, tiles: Tiles, quantization: Quantization) -> Ops:
    """`ops` with the rows at which products of these tiles are judged.

    A tile takes as long for half of its rows as for all of them, and torch need not: the largest ones are judged twice.
    Products with quantized matrices are judged beyond, too.
    """
    few, many = few_and_many(tiles)
    between = {rows * 3 // 4 for rows in many if rows > 2 * FEW}
    beyond = {rows * max(tiles) // 2 for rows in (3, 4, 2 * PARTS)} if quantization == "int8" else set()
    few_rows, many_rows = ({*few}, {*many, *between, *beyond}) if many else ({*few, *beyond}, set())
    return replace(ops, few_rows=tuple(sorted(few_rows)), many_rows=tuple(sorted(many_rows)))


def _edges(tile: int) -> tuple[int, int, int]:
    """The least rows that a tile is launched for, some odd number, and the most: a start has no time to check each of
    hundreds, which differ by padding alone."""
    return tile // 2 + 1, tile * 3 // 4 - 1, tile


def _check_chunks(ops: Ops, shapes: ServedShapes) -> None:
    assert ops.chunk_attention is not None
    check_prefill("chunk_attention", ops.chunk_attention, shapes)
