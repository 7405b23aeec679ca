"""The largest steps a runner can get, computed once before serving: kernels compile, and memory shows its peak."""

import time
from collections.abc import Callable, Iterator

import torch

from service.engine.base import GenerationRequest, SamplingParams
from service.engine.defaults import MOST_LOGPROBS
from service.engine.runner import TorchRunner
from service.engine.steps.pace import DecodeTimes
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan

HEAVIEST = SamplingParams(temperature=1.0, top_k=0, top_p=0.9)
"""Sampling that sorts the vocabulary, where the sampler sorts at all; its tokens are reported, too."""
USUAL = SamplingParams()
"""Sampling of a request that says nothing of it, which recorded decodes hold whatever samples."""
BLOCK = 1
"""The block that all sequences of a warm-up share: what they compute is of no interest."""
GRAPH_BYTES = 512 << 20
"""What the driver keeps for the recordings, a dozen decodes in two parts and a thousand segments of seven launches,
beside their activations: an estimate, half a MiB a recording."""
DECODES_TIMED = 5
"""The fastest of so many counts: the first ones may still be slow."""


def largest_steps(runner: TorchRunner, step_tokens: int, max_context: int) -> Iterator[None]:
    """A full batch of decodes; then a full chunk at the end of the longest prompt, beside decodes. Computed one after
    the other as they are asked for. The runner needs two blocks; the contents of its slots are undefined
    afterwards."""
    _decode_all(runner)
    yield
    _prefill_beside_decodes(runner, step_tokens, max_context)
    yield


def measure_step_bytes(
    device: torch.device, make: Callable[[], TorchRunner], step_tokens: int, max_context: int
) -> int:
    """Bytes of the GPU that steps take beside weights and KV cache, at their peak; the recorded decodes' own memory,
    at most that of the largest decode, counted in."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    steps = largest_steps(make(), step_tokens, max_context)
    peaks = [torch.cuda.max_memory_reserved(device) for _ in steps]
    torch.cuda.empty_cache()
    return sum(peak - before for peak in peaks) + GRAPH_BYTES


def _decode_all(runner: TorchRunner) -> None:
    runner.launch(StepPlan([], _decodes(runner, runner.max_running))).tokens()


def _prefill_beside_decodes(runner: TorchRunner, step_tokens: int, max_context: int) -> None:
    decodes = _decodes(runner, runner.max_running)
    longest = _sequence(0, max_context - 1, runner)
    runner.admit(longest)
    chunk = Chunk(longest, max(0, max_context - 1 - step_tokens), max_context - 1)
    runner.launch(StepPlan([chunk], decodes[1:])).tokens()


def time_decodes(runner: TorchRunner) -> DecodeTimes:
    """How long decodes of one sequence and of a full batch take. The contents of the runner's slots are undefined
    afterwards."""
    most = runner.max_running
    return DecodeTimes(_time_decode(runner, 1), _time_decode(runner, most), most)


def _time_decode(runner: TorchRunner, count: int) -> float:
    plan = StepPlan([], _decodes(runner, count, USUAL))

    def once() -> float:
        started = time.perf_counter()
        runner.launch(plan).tokens()
        return time.perf_counter() - started

    return min(once() for _ in range(DECODES_TIMED))


def _decodes(runner: TorchRunner, count: int, sampling: SamplingParams = HEAVIEST) -> list[Decode]:
    """So many sequences of one token each, admitted, with their second one to compute."""
    sequences = [_sequence(slot, 1, runner, sampling) for slot in range(count)]
    for sequence in sequences:
        runner.admit(sequence)
    return [Decode(sequence, 1) for sequence in sequences]


def _sequence(slot: int, prompt: int, runner: TorchRunner, sampling: SamplingParams = HEAVIEST) -> Sequence:
    request = GenerationRequest(
        id=f"warm-up-{slot}",
        prompt_ids=[0] * prompt,
        max_new_tokens=2,
        stop_ids=[],
        deadline=0.0,
        sampling=sampling,
        logprobs=MOST_LOGPROBS if sampling is HEAVIEST else None,
    )
    blocks = [BLOCK] * (-(-(prompt + 1) // runner.block_size))
    return Sequence(request, arrival=0.0, slot=slot, blocks=blocks)
