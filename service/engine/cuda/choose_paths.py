"""Decides what serves on this device. On a GPU every fast path is compared with the plain one first, and what fails is
replaced and named; a CPU has one path only."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from service.engine.attention import PrefillAttention, PrefillFactory
from service.engine.cuda.flash import (
    FLASH_PAGE,
    FlashDecode,
    FlashPrefillAttention,
    Varlen,
    flash_function,
    flash_kernel,
)
from service.engine.cuda.graphs import buckets_for
from service.engine.cuda.overlap_check import check_overlap
from service.engine.cuda.paths import Paths, PrefillBySize
from service.engine.cuda.recorder import CudaRecorder
from service.engine.device_errors import is_out_of_memory
from service.engine.kernels.candidate import Candidate, ServedShapes
from service.engine.kernels.checks import check_locate
from service.engine.kernels.decode_check import check_decode_attention
from service.engine.kernels.ops import Ops
from service.engine.kernels.prefill_check import check_prefill
from service.engine.kernels.race import race
from service.engine.kernels.selfcheck import Proof, prove, prove_candidates

logger = logging.getLogger(__name__)


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


def _proved_and_raced(shapes: ServedShapes, *, alone: bool = False, only: Collection[str] = ()) -> Proof:
    """The kernels that proved right, and of those the ones that torch does not outrun; with `only` some are tried, and
    none is raced. A race that breaks is on trial like a kernel: it is the first to record launches, and the first to
    meet products as large as the served ones."""
    proof = prove(shapes, alone=alone, only=only)
    if only:
        return proof
    raced = [proof.ops]

    def run(ops: Ops, shapes: ServedShapes) -> None:
        raced.append(_raced(ops, shapes))

    failed = prove_candidates([Candidate("race", {}, run)], shapes, proof.ops).degraded
    return replace(proof, ops=raced[-1], degraded=[*proof.degraded, *failed])


def _raced(ops: Ops, shapes: ServedShapes) -> Ops:
    try:
        return race(ops, shapes)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("no memory to race the kernels in: they serve as they are, proved right and perhaps slower")
        return ops


def _check_overlap(ops: Ops, shapes: ServedShapes) -> None:
    check_overlap(ops, shapes, CudaRecorder(shapes.device), lambda: torch.cuda.synchronize(shapes.device))


OVERLAP = Candidate("overlap", {}, _check_overlap)


def proved_together(shapes: ServedShapes, prove: Callable[..., Proof], overlap: Candidate = OVERLAP) -> Proof:
    """What `prove` proves right, with overlapping launches if `overlap` proves those too. When anything fails with
    them that does not fail without, kernels are served that run alone."""
    proof = prove(shapes)
    if not proof.overlaps:
        return proof

    def disagreement() -> list[str]:
        return prove_candidates([overlap], shapes, proof.ops).degraded

    reasons = disagreement() if _fails_anyway(proof, shapes, prove) else proof.degraded
    if not reasons:
        return proof
    alone = prove(shapes, alone=True)
    return replace(alone, degraded=[f"overlap: {reasons[0].removeprefix('overlap: ')}", *alone.degraded])


def _fails_anyway(proof: Proof, shapes: ServedShapes, prove: Callable[..., Proof]) -> bool:
    """Whether what fails, if anything does, fails without overlap, too: that is tried of it alone, which is compiled
    anew for it. A race that fails says nothing of that: it runs all kernels."""
    failed = _names(proof)
    if not failed:
        return True
    return "race" not in failed and _names(prove(shapes, alone=True, only=failed)) == failed


def _names(proof: Proof) -> set[str]:
    """The kernels that do not serve."""
    return {reason.partition(":")[0] for reason in proof.degraded}


def assemble(
    proof: Proof, shapes: ServedShapes, max_running: int, flash: Sequence[Varlen] = (flash_kernel, flash_function)
) -> Choice:
    """Paths from the kernels that proved right, and the first of `flash` that does."""
    degraded, ops = list(proof.degraded), proof.ops
    has_decode = ops.decode_attention is not Ops().decode_attention
    if not has_decode:
        ops = replace(ops, rotating_attention=None)  # its batches would be planned by another
        paged = replace(shapes, block_size=-(-shapes.block_size // FLASH_PAGE) * FLASH_PAGE)
        ops, reasons = _with_flash_decode(ops, paged, flash)
        has_decode, degraded = not reasons, degraded + reasons
        shapes = paged if has_decode else shapes
        ops, reasons = _proved_for_blocks(ops, shapes) if has_decode else (ops, [])
        degraded += reasons
    prefill, reasons = _flash_prefill(shapes, flash)
    if ops.chunk_attention is not None:
        prefill = PrefillBySize(prefill, ops.chunk_attention, shapes.config.num_heads, proof.multiprocessors)
    paths = Paths(
        ops=ops,
        prefill=prefill,
        plans_decode=has_decode,
        buckets=buckets_for(max_running) if has_decode else (),
    )
    return Choice(paths, shapes.block_size, degraded + reasons)


def _with_flash_decode(ops: Ops, shapes: ServedShapes, flash: Sequence[Varlen]) -> tuple[Ops, list[str]]:
    """`ops` with the first of `flash` that is right; as they were, with the reason, when none is."""
    decodes = (FlashDecode(shapes.config.max_positions, varlen) for varlen in flash)
    fields = ({"plan_decode": decode.plan, "decode_attention": decode.attend} for decode in decodes)
    ways = [Candidate("", each, check_decode_attention) for each in fields]
    right, reasons = _first_right("flash_decode", ways, shapes, ops)
    return (ops if right is None else replace(ops, **ways[right].fields)), reasons


def _proved_for_blocks(ops: Ops, shapes: ServedShapes) -> tuple[Ops, list[str]]:
    """`ops` without what does not prove right for these blocks, too: it is compiled for them anew."""
    plain, wanted = Ops(), []
    if ops.locate is not plain.locate:
        wanted.append(Candidate("locate", {"locate": ops.locate}, check_locate))
    if ops.chunk_attention is not None:
        check = partial(_check, "chunk_attention", ops.chunk_attention)
        wanted.append(Candidate("chunk_attention", {"chunk_attention": ops.chunk_attention}, check))
    proof = prove_candidates(wanted, shapes, replace(ops, locate=plain.locate, chunk_attention=None))
    return proof.ops, proof.degraded


def _flash_prefill(shapes: ServedShapes, flash: Sequence[Varlen]) -> tuple[PrefillFactory, list[str]]:
    """The first of `flash` that is right, or plain attention with the reason."""
    factories = [partial(FlashPrefillAttention, varlen=varlen) for varlen in flash]
    ways = [Candidate("", {}, partial(_check, "flash_prefill", factory)) for factory in factories]
    right, reasons = _first_right("flash_prefill", ways, shapes, Ops())
    return (PrefillAttention if right is None else factories[right]), reasons


def _first_right(name: str, ways: Sequence[Candidate], shapes: ServedShapes, ops: Ops) -> tuple[int | None, list[str]]:
    """Which of some ways to the same is the first that proves right; None, and what is wrong with the first, when none
    does. Each is on trial for itself: one that ends the process leaves the next one to serve."""
    reasons = []
    for number, way in enumerate(ways):
        failed = prove_candidates([replace(way, name=f"{name}.{number}")], shapes, ops).degraded
        if not failed:
            return number, []
        reasons.append(f"{name}: {failed[0].partition(': ')[2]}")
    return None, reasons[:1]


def _check(name: str, factory: PrefillFactory, _: Ops, shapes: ServedShapes) -> None:
    check_prefill(name, factory, shapes)
