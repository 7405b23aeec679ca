"""Whether kernels whose launches overlap compute, recorded as they serve, what they compute one after another.

Each kernel alone says nothing about that: one that reads a result before it is there errs only in a chain. So a decode
of two layers of the served shapes is recorded and replayed, and must leave the very same bits in the KV cache, and draw
the very same tokens, as the same kernels with a pause after each.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch

from service.engine.attention import PagedCache
from service.engine.base import GenerationRequest, SamplingParams
from service.engine.cuda.graphs import Recorder
from service.engine.cuda.paths import Paths
from service.engine.kernels.candidate import Disagreement, ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Decode, Sequence, StepPlan
from service.engine.weights import Weights, allocate, places_of

LAYERS = 2
SMALL_BATCHES = (40, 3, 1)
"""Rows that meet split products, few rows, and one."""
LARGE_BATCH = 262
"""More than any tile takes: those of the library, or several parts."""
STEPS = 8
CONTEXT = 300
"""Tokens before the first step: an attention in several pieces."""


@torch.inference_mode()
def check_overlap(ops: Ops, shapes: ServedShapes, recorder: Recorder, pause: Callable[[], None]) -> None:
    """Raises Disagreement when recorded decodes differ from those with a `pause` after each operation.

    Takes some tenths of a second and, for an 8B model, 4 GB of device memory.
    """
    config = replace(shapes.config, num_layers=LAYERS)
    weights, positions = random_weights(replace(shapes, config=config)), min(config.max_positions, 2 * CONTEXT)
    for batch, served in [*((batch, ops) for batch in batches(ops)), *_beside_prompts(ops)]:
        traces = []
        for chosen, recording in ((served, recorder), (paused(served, pause), None)):
            model = Model(config, weights, positions, chosen)
            traces.append(_decode(model, shapes, batch, recording))
        if not all(torch.equal(mine, other) for mine, other in zip(*traces, strict=True)):
            raise Disagreement(f"decodes of {batch} rows differ from those with a pause after each kernel")


def _beside_prompts(ops: Ops) -> list[tuple[int, Ops]]:
    """What rotates decodes whose attention does not: that of steps with prompts in them."""
    return [(max(SMALL_BATCHES), replace(ops, rotating_attention=None))] if ops.rotating_attention else []


def batches(ops: Ops) -> list[int]:
    """Rows that meet every kernel. The largest first, whose memory serves all."""
    large = (rows for rows in ops.judged_rows if max(SMALL_BATCHES) < rows < LARGE_BATCH)
    return sorted({LARGE_BATCH, *large, *SMALL_BATCHES}, reverse=True)


def paused(ops: Ops, pause: Callable[[], None]) -> Ops:
    """`ops` with a `pause` after each operation, and between the two halves of a chain."""
    chains = ops.few_rows_chain, ops.many_rows_chain

    def slow(operation: Any) -> Any:
        within = {"between": pause} if operation in chains else {}

        def run(*arguments: Any) -> Any:
            result = operation(*arguments, **within)
            pause()
            return result

        return run

    found = {field.name: getattr(ops, field.name) for field in fields(ops)}
    return replace(ops, **{name: slow(operation) for name, operation in found.items() if callable(operation)})


def random_weights(shapes: ServedShapes) -> Weights:
    """Weights that keep a token's numbers near one, whatever the layer."""
    weights = allocate(shapes.config, shapes.device, shapes.dtype, shapes.quantization)
    generator = torch.Generator(shapes.device).manual_seed(0)
    for place in places_of(weights, shapes.config).values():
        spread = place.shape[-1] ** -0.5 if len(place.shape) > 1 else 1.0
        if isinstance(place, torch.Tensor):
            place.normal_(0.0, spread, generator=generator)
        else:
            place.copy_(torch.empty_like(place.values, dtype=shapes.dtype).normal_(0.0, spread, generator=generator))
    return weights


def _decode(model: Model, shapes: ServedShapes, batch: int, recorder: Recorder | None) -> list[torch.Tensor]:
    """What STEPS decodes of `batch` sequences leave: their tokens [STEPS, batch], and both caches of each layer."""
    context = min(CONTEXT, model.config.max_positions - STEPS)
    width = -(-(context + STEPS) // shapes.block_size)
    cache = PagedCache(model.config, 1 + batch * width, shapes.block_size, shapes.device, shapes.dtype)
    for tensor in (*cache.keys, *cache.values):
        tensor[1:] = shapes.random(*tensor.shape)[1:]
    paths = Paths(model.ops, plans_decode=True, buckets=(batch,))
    runner = TorchRunner(model, cache, batch, context + STEPS, paths)
    if recorder is not None:
        runner.record(recorder)
        assert runner.graphs is not None
        if runner.graphs.degraded:
            raise Disagreement(runner.graphs.degraded[0])
    sequences = [_sequence(row, context, width) for row in range(batch)]
    for sequence in sequences:
        runner.admit(sequence)
    steps = []
    for step in range(STEPS):
        plan = StepPlan([], [Decode(sequence, context + step) for sequence in sequences])
        steps.append(runner.launch(plan).tokens())
    # Block 0 takes what padding rows write, of which a recording makes some.
    return [torch.tensor(steps), *(tensor[1:] for tensor in (*cache.keys, *cache.values))]


def _sequence(row: int, context: int, width: int) -> Sequence:
    """One that has its prompt of `context` tokens, and a first token, behind it."""
    request = GenerationRequest(
        id=f"overlap-{row}",
        prompt_ids=[token % 8 for token in range(context)],
        max_new_tokens=STEPS + 1,
        stop_ids=[],
        deadline=0.0,
        sampling=SamplingParams(seed=row),
    )
    blocks = list(range(1 + row * width, 1 + (row + 1) * width))
    return Sequence(request, arrival=0.0, slot=row, blocks=blocks, output=[row])
