"""The largest steps a runner can get, computed once before serving: kernels compile, and memory shows its peak."""

from collections.abc import Callable

import torch

from service.engine.base import GenerationRequest, SamplingParams
from service.engine.runner import TorchRunner
from service.engine.step import Chunk, Decode, Sequence, StepPlan

HEAVIEST = SamplingParams(temperature=1.0, top_k=0, top_p=0.9)
"""Sampling that sorts the vocabulary, where the sampler sorts at all."""
BLOCK = 1
"""The block that all sequences of a warm-up share: what they compute is of no interest."""
GRAPH_BYTES = 512 << 20
"""What the driver keeps for the recorded graphs of all batch sizes, beside their activations; rounded up."""


def warm_up(runner: TorchRunner, step_tokens: int, max_context: int) -> None:
    """A full batch of decodes, and beside it a full chunk at the end of the longest prompt. The runner needs two
    blocks, and its slots hold anything after it."""
    runners = [_sequence(slot, 1, runner) for slot in range(runner.max_running)]
    for sequence in runners:
        runner.admit(sequence)
    decodes = [Decode(sequence, 1) for sequence in runners]
    runner.launch(StepPlan([], decodes)).tokens()
    longest = _sequence(0, max_context - 1, runner)
    runner.admit(longest)
    chunk = Chunk(longest, max(0, max_context - 1 - step_tokens), max_context - 1)
    runner.launch(StepPlan([chunk], decodes[1:])).tokens()


def measure_step_bytes(
    device: torch.device, make: Callable[[], TorchRunner], step_tokens: int, max_context: int
) -> int:
    """Bytes of the GPU that steps take beside weights and KV cache, at their peak; a recorded copy of the decode's
    counted in."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    warm_up(make(), step_tokens, max_context)
    peak = torch.cuda.max_memory_reserved(device) - before
    torch.cuda.empty_cache()
    # The recorded decode has its own memory, at most that of the largest step.
    return 2 * peak + GRAPH_BYTES


def _sequence(slot: int, prompt: int, runner: TorchRunner) -> Sequence:
    request = GenerationRequest(
        id=f"warm-up-{slot}",
        prompt_ids=[0] * prompt,
        max_new_tokens=2,
        stop_ids=[],
        deadline=0.0,
        sampling=HEAVIEST,
    )
    blocks = [BLOCK] * (-(-(prompt + 1) // runner.block_size))
    return Sequence(request, arrival=0.0, slot=slot, blocks=blocks)
