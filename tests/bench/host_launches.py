"""What a step with a prompt in it costs the host: launched one by one, and by recorded segments. Needs no GPU.

    python -m tests.bench.host_launches

Kernels are bound and compiled as on a GPU (by default a Hopper) but not launched, products are not computed, and a
replay does nothing: what is left is the host's own work, which on a GPU has to be done before the step is. Prints one
JSON line: microseconds a layer both ways, and their ratio. Needs TRITON_INTERPRET unset.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from service.engine.attention import PagedCache
from service.engine.cuda.compile_ahead import choices_for, unlaunched
from service.engine.cuda.paths import Paths
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Chunk, Decode, StepPlan
from service.engine.weights import allocate
from tests.bench.stall import SETTLING
from tests.engine.kernels.bind_for import CONFIG, serving_ops
from tests.support.plans import CPU, sequence_of

LAYERS = 8
DECODES = 15
CONTEXT, CHUNK = 1280, 128
ROUNDS = 20


class NothingToReplay:
    """`Recorder` whose replays cost nothing."""

    def rehearse(self, body: Callable[[], None]) -> None:
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        body()
        return lambda: None

    def require_usable(self) -> None: ...


def a_runner(capability: int) -> TorchRunner:
    """A few layers of the served head layout on the CPU, with every kernel."""
    torch.nn.functional.linear = lambda x, weight, bias=None: x.new_empty(x.shape[0], weight.shape[0])
    dtype, tuning = choices_for(capability)
    ops = serving_ops(tuning)
    assert ops.chunk_attention is not None
    config = replace(CONFIG, num_layers=LAYERS)
    model = Model(config, allocate(config, CPU, dtype), 2 * CONTEXT, ops)
    cache = PagedCache(config, 64, 64, CPU, dtype)
    paths = Paths(ops, ops.chunk_attention, plans_decode=True, buckets=(1, 2, 4, 8, 16))
    return TorchRunner(model, cache, DECODES + 1, 2 * CONTEXT, paths)


def a_step(runner: TorchRunner) -> StepPlan:
    """A chunk of a long prompt beside some decodes."""
    long = sequence_of([1] * (CONTEXT + CHUNK), slot=0, blocks=list(range(1, 24)))
    short = [sequence_of([1] * 30, slot=slot, blocks=[24 + slot]) for slot in range(1, DECODES + 1)]
    for sequence in (long, *short):
        runner.admit(sequence)
    return StepPlan([Chunk(long, CONTEXT, CONTEXT + CHUNK)], [Decode(sequence, 30) for sequence in short])


def microseconds(step: Callable[[], object]) -> float:
    """The best of some rounds, a layer."""

    def once() -> float:
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    for _ in range(SETTLING):
        step()
    return min(once() for _ in range(ROUNDS)) / LAYERS * 1e6


@torch.inference_mode()
def measure(capability: int) -> dict[str, float]:
    """Both ways, in one process."""
    with unlaunched(capability):
        runner = a_runner(capability)
        plan = a_step(runner)
        forward = partial(runner._forward, plan)
        launched = microseconds(forward)
        runner.record_segments(NothingToReplay(), CHUNK)  # type: ignore[arg-type]
        assert runner.segments is not None
        assert runner.segments.shape(DECODES + 1, CHUNK) is not None
        recorded = microseconds(forward)
    return {
        "launched_us": round(launched, 1),
        "recorded_us": round(recorded, 1),
        "ratio": round(launched / recorded, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90)
    torch.set_num_threads(1)
    print(json.dumps(measure(parser.parse_args().capability)))


if __name__ == "__main__":
    main()
