"""What `python -m tests.bench.gpu` runs, in this order, each section a function of the run.

What tells most for its time comes first, should a run be cut off: transformers' continuous batching takes longest.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from tests.bench.run import Run
from tests.bench.sections import others, product, quantized, requests, steps, structured, verification


@dataclass(frozen=True)
class Section:
    """`needs`: sections whose figures it holds others' against; a ratio's two figures are of one run."""

    run: Callable[[Run], None]
    needs: tuple[str, ...] = ()


OURS = ("load", "decode", "throughput", "long", "prefix")
SECTIONS = {
    "load": Section(product.load),
    "decode": Section(steps.decode),
    "throughput": Section(requests.throughput),
    "long": Section(requests.long),
    "prefill": Section(steps.prefill),
    "prefix": Section(requests.prefix),
    "stall": Section(requests.stall),
    "reference": Section(others.reference, needs=OURS),
    "web": Section(product.web),
    "verify_kernels": Section(verification.verify_kernels),
    "verify_engine": Section(verification.verify_engine),
    "int8": Section(quantized.int8, needs=("decode", "throughput", "prefill")),
    "structured": Section(structured.structured, needs=("throughput",)),
    "continuous_batching": Section(others.continuous_batching, needs=("throughput", "long", "prefix")),
}


def with_needs(names: list[str], without: Collection[str] = ()) -> list[str]:
    """These and what they need, in order, but for those `without` which there are to be, and whoever needs them."""
    kept = [name for name in names if not {name, *SECTIONS[name].needs} & {*without}]
    wanted = {*kept, *(need for name in kept for need in SECTIONS[name].needs)}
    return [name for name in SECTIONS if name in wanted]
