"""Decides what serves on this device. On a GPU every fast path is compared with the plain one first, and what fails is
replaced and named; a CPU has one path only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.attention.varlen import varlen_attn

from service.engine.attention import ChunkSpan, PagedCache, PrefillAttention
from service.engine.cuda_graphs import CudaRecorder
from service.engine.flash import FLASH_PAGE, FlashDecode, FlashPrefillAttention, Varlen, flash_kernel
from service.engine.graphs import buckets_for
from service.engine.kernels import checks
from service.engine.kernels.checks import Candidate, ServedShapes, require_close
from service.engine.kernels.ops import Ops
from service.engine.kernels.race import race
from service.engine.kernels.selfcheck import Proof, prove, prove_candidates
from service.engine.overlap_check import check_overlap
from service.engine.paths import Paths, PrefillFactory


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves; `degraded` names every fast path that does not, with its reason."""

    paths: Paths
    block_size: int
    degraded: list[str]


def choose_paths(shapes: ServedShapes, max_running: int) -> Choice:
    """The fastest paths that proved right for the served shapes. Raises EngineFailed for an unusable device."""
    if shapes.device.type != "cuda":
        return Choice(Paths(), shapes.block_size, [])
    return assemble(proved_together(shapes, _proved_and_raced), shapes, max_running)


def _proved_and_raced(shapes: ServedShapes, *, alone: bool = False) -> Proof:
    proof = prove(shapes, alone=alone)
    return replace(proof, ops=race(proof.ops, shapes))


def _check_overlap(ops: Ops, shapes: ServedShapes) -> None:
    check_overlap(ops, shapes, CudaRecorder(shapes.device), lambda: torch.cuda.synchronize(shapes.device))


OVERLAP = Candidate("overlap", {}, _check_overlap)


def proved_together(shapes: ServedShapes, prove: Callable[..., Proof], overlap: Candidate = OVERLAP) -> Proof:
    """What `prove` proves right, with overlapping launches if `overlap` proves those too. When anything fails with
    them, kernels are proved and served that run alone."""
    proof = prove(shapes)
    if not proof.overlaps:
        return proof
    reasons = proof.degraded or prove_candidates([overlap], shapes, proof.ops).degraded
    if not reasons:
        return proof
    alone = prove(shapes, alone=True)
    return replace(alone, degraded=[f"overlap: {reasons[0].removeprefix('overlap: ')}", *alone.degraded])


def assemble(
    proof: Proof, shapes: ServedShapes, max_running: int, flash: Sequence[Varlen] = (flash_kernel, varlen_attn)
) -> Choice:
    """Paths from the kernels that proved right, and the first of `flash` that does."""
    degraded, block_size, ops = list(proof.degraded), shapes.block_size, proof.ops
    has_decode = ops.decode_attention is not Ops().decode_attention
    if not has_decode:
        block_size = -(-shapes.block_size // FLASH_PAGE) * FLASH_PAGE
        ops, reasons = _with_flash_decode(ops, replace(shapes, block_size=block_size), flash)
        has_decode, degraded = not reasons, degraded + reasons
        block_size = block_size if has_decode else shapes.block_size
    prefill, reasons = _flash_prefill(shapes, flash)
    paths = Paths(
        ops=ops,
        prefill=prefill,
        plans_decode=has_decode,
        buckets=buckets_for(max_running) if has_decode else (),
    )
    return Choice(paths, block_size, degraded + reasons)


def _with_flash_decode(ops: Ops, shapes: ServedShapes, flash: Sequence[Varlen]) -> tuple[Ops, list[str]]:
    """`ops` with the first of `flash` that is right; as they were, with the reasons, when none is."""
    reasons: list[str] = []
    for varlen in flash:
        decode = FlashDecode(shapes.config.max_positions, varlen)
        fields = {"plan_decode": decode.plan, "decode_attention": decode.attend}
        candidate = Candidate("flash_decode", fields, checks.check_decode_attention)
        proof = prove_candidates([candidate], shapes, ops)
        if not proof.degraded:
            return proof.ops, []
        reasons += proof.degraded
    return ops, reasons


def _flash_prefill(shapes: ServedShapes, flash: Sequence[Varlen]) -> tuple[PrefillFactory, list[str]]:
    """The first of `flash` that is right, or plain attention with the reasons."""
    reasons: list[str] = []
    for varlen in flash:
        factory = partial(FlashPrefillAttention, varlen=varlen)
        candidate = Candidate("flash_prefill", {}, partial(_check_prefill_of, factory))
        failed = prove_candidates([candidate], shapes, Ops()).degraded
        if not failed:
            return factory, []
        reasons += failed
    return PrefillAttention, reasons


def _check_prefill_of(factory: PrefillFactory, _: Ops, shapes: ServedShapes) -> None:
    check_prefill(factory, shapes)


def check_prefill(factory: PrefillFactory, shapes: ServedShapes) -> None:
    """Prompts from their beginning alone; and beside one that continues a cached prefix. Raises Disagreement."""
    size = shapes.block_size
    for bounds in ([(0, 3), (0, 1), (0, size + 5)], [(0, 7), (2 * size, 3 * size - 1), (size + 1, 2 * size + 9)]):
        kept = [(start, min(end, shapes.config.max_positions)) for start, end in bounds]
        expected = _attended(PrefillAttention, replace(shapes, dtype=torch.float32), shapes.dtype, kept)
        require_close("flash_prefill", _attended(factory, shapes, shapes.dtype, kept), expected, shapes.dtype)


def _attended(
    factory: PrefillFactory, shapes: ServedShapes, rounded: torch.dtype, bounds: list[tuple[int, int]]
) -> torch.Tensor:
    """[T, heads, head_dim] of chunks of random sequences, whose numbers are those of the type `rounded`."""
    c, size = replace(shapes.config, num_layers=1), shapes.block_size
    cache = PagedCache(c, 1 + sum(-(-end // size) for _, end in bounds), size, shapes.device, shapes.dtype)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    rows, spans, places, first, block = [], [], [], 0, 1
    for start, end in bounds:
        held = replace(shapes, dtype=rounded).random(2, end, c.num_kv_heads, c.head_dim).to(shapes.dtype)
        blocks = torch.arange(block, block + -(-end // size), device=shapes.device)
        at = (blocks[:, None] * size + torch.arange(size, device=shapes.device)).flatten()[:end]
        cache.keys[0].flatten(0, 1).index_copy_(0, at, held[0])
        cache.values[0].flatten(0, 1).index_copy_(0, at, held[1])
        spans.append(ChunkSpan(first, first + end - start, end, blocks.int()))
        rows.append(held[:, start:])
        places.append(at[start:])
        first, block = first + end - start, block + blocks.shape[0]
    q = replace(shapes, dtype=rounded).random(first, c.num_heads, c.head_dim).to(shapes.dtype)
    k, v = torch.cat(rows, dim=1)
    return factory(cache, torch.cat(places), spans)(0, q, k, v)
