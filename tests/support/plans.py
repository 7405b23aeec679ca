"""Hand-made steps for a runner, without a scheduler: a sequence with its slot and blocks, its prefill, its decodes."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.attention import ChunkSpan, PagedCache, PrefillAttention
from service.engine.base import GenerationRequest, SamplingParams
from service.engine.config import read_config
from service.engine.cuda.paths import Paths
from service.engine.defaults import Quantization
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan
from service.engine.weights import load_weights, open_checked

GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)
CPU = torch.device("cpu")
BLOCK_SIZE = 8


def load_native(model_dir: Path, dtype: torch.dtype = torch.float32, quantization: Quantization = "none") -> Model:
    """The checkpoint's native model on the CPU."""
    config = read_config(model_dir)
    weights, _ = load_weights(open_checked(model_dir, config), config, CPU, dtype, quantization)
    return Model(config, weights, config.max_positions)


def runner_of(
    model: Model,
    *,
    num_blocks: int = 64,
    max_running: int = 8,
    paths: Paths | None = None,
    block_size: int = BLOCK_SIZE,
) -> TorchRunner:
    """A runner whose cache starts out poisoned: whoever reads what was never written gets NaN."""
    cache = PagedCache(model.config, num_blocks, block_size, CPU, torch.float32)
    for tensor in (*cache.keys, *cache.values):
        tensor[1:] = float("nan")
    return TorchRunner(model, cache, max_running, model.config.max_positions, paths)


def sequence_of(
    prompt: list[int],
    *,
    slot: int,
    blocks: list[int],
    new: int = 16,
    sampling: SamplingParams = GREEDY,
    logprobs: int | None = None,
) -> Sequence:
    """A sequence as a scheduler would admit it."""
    request = GenerationRequest(
        id=f"slot-{slot}",
        prompt_ids=prompt,
        max_new_tokens=new,
        stop_ids=[],
        deadline=0.0,
        sampling=sampling,
        logprobs=logprobs,
    )
    return Sequence(request, arrival=0.0, slot=slot, blocks=blocks)


def prefill(runner: TorchRunner, sequence: Sequence, chunk: int = 512) -> int:
    """Admit and prefill in chunks; the first token."""
    runner.admit(sequence)
    for start in range(sequence.cached, sequence.prompt_length, chunk):
        end = min(start + chunk, sequence.prompt_length)
        tokens = runner.launch(StepPlan([Chunk(sequence, start, end)], [])).tokens()
    [token] = tokens
    return token


def decode(runner: TorchRunner, sequences: list[Sequence], steps: int) -> list[list[int]]:
    """`steps` more tokens for each of the sequences, in one batch; a list per sequence."""
    rows = []
    for _ in range(steps):
        plan = [Decode(s, s.prompt_length + len(s.output)) for s in sequences]
        rows.append(runner.launch(StepPlan([], plan)).tokens())
        for sequence, token in zip(sequences, rows[-1], strict=True):
            sequence.output.append(token)
    return [list(column) for column in zip(*rows, strict=True)]


def generate(runner: TorchRunner, sequence: Sequence, count: int, chunk: int = 512) -> list[int]:
    """`count` tokens of one sequence, alone."""
    return [prefill(runner, sequence, chunk), *decode(runner, [sequence], count - 1)[0]]


@torch.inference_mode()
def logits_of(model: Model, prompt: list[int], dtype: torch.dtype) -> torch.Tensor:
    """fp32 logits [T, vocab] at every position of a prompt."""
    blocks = -(-len(prompt) // BLOCK_SIZE)
    cache = PagedCache(model.config, blocks + 1, BLOCK_SIZE, CPU, dtype)
    places = torch.arange(len(prompt)) + BLOCK_SIZE
    span = ChunkSpan(0, len(prompt), len(prompt), torch.arange(1, blocks + 1, dtype=torch.int32))
    attention = PrefillAttention(cache, places, [span])
    return model.logits(model.forward(torch.tensor(prompt), torch.arange(len(prompt)), attention)).float()


def bits_of(allowed: list[list[int]], vocab: int) -> NDArray[np.uint8]:
    """What `restrict` takes: of each row its tokens, and no other."""
    rows = np.zeros((len(allowed), -(-vocab // 32) * 32), dtype=np.uint8)
    for row, tokens in zip(rows, allowed, strict=True):
        row[tokens] = 1
    return np.packbits(rows, axis=1, bitorder="little")
