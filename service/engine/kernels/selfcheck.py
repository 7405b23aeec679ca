"""Which kernels serve on this GPU: each is compiled for it and compared with torch on data of the served shapes.

A kernel that fails to compile, or to agree, is left out and named: an untested card serves slower, never wrong.
"""

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from service.engine.device_errors import require_usable
from service.engine.kernels.candidate import Candidate, Disagreement, ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import tuning_for
from service.errors import first_line

logger = logging.getLogger(__name__)

REASON_LENGTH = 200


@dataclass(frozen=True, slots=True)
class Proof:
    """The operations to serve with; `degraded` names each kernel that is not among them, with its reason.

    `overlaps`: the kernels' launches overlap, which is not proved yet. `multiprocessors`: those of the GPU.
    """

    ops: Ops
    degraded: list[str]
    seconds: float
    overlaps: bool = False
    multiprocessors: int = 0


def prove(shapes: ServedShapes, *, alone: bool = False, only: Collection[str] = ()) -> Proof:
    """The fastest operations that proved right on `shapes.device`; on a CPU the plain ones, which need no proof.

    `alone`: no kernel's launch overlaps another's, also on a GPU that can do it. `only`: the names of the kernels that
    are tried, unless it is empty.

    Takes about a second, a third of one more for each kernel that was neither shipped nor compiled before (see
    `shipped`), and for an 8B model 0.5 GB of device memory, or 2 GB where it is quantized. Raises EngineFailed when a
    kernel left the device unusable.
    """
    if shapes.device.type != "cuda":
        return Proof(Ops(), [], 0.0)
    try:
        from service.engine.kernels.candidates import candidates, with_judged_rows
        from service.engine.kernels.shipped import use_shipped_kernels
    except ImportError as error:
        return Proof(Ops(), [_degraded("triton", error)], 0.0)
    use_shipped_kernels()
    tuning = tuning_for(torch.cuda.get_device_capability(shapes.device))
    tuning = replace(tuning, overlaps=tuning.overlaps and not alone).for_dtype(shapes.dtype)
    multiprocessors = torch.cuda.get_device_properties(shapes.device).multi_processor_count
    every = candidates(tuning, multiprocessors, shapes.quantization)
    wanted = [candidate for candidate in every if not only or candidate.name in only]
    plain = with_judged_rows(Ops(), tuning.tiles(shapes.quantization), shapes.quantization)
    proof = prove_candidates(wanted, shapes, plain)
    return replace(proof, overlaps=tuning.overlaps, multiprocessors=multiprocessors)


@torch.inference_mode()
def prove_candidates(wanted: Sequence[Candidate], shapes: ServedShapes, plain: Ops) -> Proof:
    """`plain` with every one of `wanted` that passes its check."""
    began = time.monotonic()
    ops, degraded, convicted = plain, [], shapes.trials.convicted()
    for candidate in wanted:
        if candidate.name in convicted:
            verdict = f"it ended an engine process; to try it again, delete {shapes.trials.convictions}"
            degraded.append(_degraded(candidate.name, Disagreement(verdict)))
            continue
        with shapes.trials.of(candidate.name):
            reason = _tried(candidate, shapes, plain)
        if reason:
            degraded.append(reason)
        else:
            ops = replace(ops, **candidate.fields)
    seconds = time.monotonic() - began
    logger.info("%d of %d kernels proved themselves in %.1f s", len(wanted) - len(degraded), len(wanted), seconds)
    return Proof(ops, degraded, seconds)


def _tried(candidate: Candidate, shapes: ServedShapes, plain: Ops) -> str:
    """Why a kernel does not serve; empty when it does. Raises EngineFailed when it left the device unusable."""
    try:
        candidate.check(replace(plain, **candidate.fields), shapes)
    # Compilers, drivers and launchers raise what they like; whatever it is, torch can do without this kernel.
    except Exception as error:
        reason = _degraded(candidate.name, error)
        require_usable(shapes.device, f"the kernel {candidate.name}")
        return reason
    return ""


def _degraded(name: str, error: Exception) -> str:
    kind = "" if isinstance(error, Disagreement) else f"{type(error).__name__}: "
    reason = f"{name}: {kind}{first_line(error)}"[:REASON_LENGTH]
    logger.warning("serving without a kernel: %s", reason, exc_info=not isinstance(error, Disagreement))
    return reason
