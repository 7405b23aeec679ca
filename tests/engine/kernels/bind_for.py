"""Decodes of one layer on the CPU whose kernels are bound, specialised and compiled as on a GPU, but not launched.

`python -m tests.engine.kernels.bind_for 90` prints how often each kernel was compiled for decodes of all batch sizes: a
wrong argument at any launch, or one that has a kernel compiled anew while serving, shows without a GPU.
"""

import itertools
import json
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from service.engine.attention import ChunkSpan, PagedCache
from service.engine.config import INTERNLM3_8B
from service.engine.cuda.compile_ahead import choices_for, kernels_of, unlaunched
from service.engine.cuda.paths import Paths
from service.engine.kernels import torch_ops
from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.ops import Ops
from service.engine.kernels.tuning import Tuning
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.sampling import Method
from service.engine.weights import allocate

CONFIG = replace(
    INTERNLM3_8B, num_layers=1, hidden_size=256, intermediate_size=512, num_heads=16, head_dim=64, vocab_size=4096
)
CHUNKS = (1, 7, 8, 9, 40, 100)
BATCHES = (1, 2, 3, 4, 5, 8, 16, 24, 33, 70, 130, 262)
MAX_RUNNING = (max(BATCHES), 275)
"""The tables of the slots' numbers begin off multiples of 16 bytes with one, on them with the other."""
CPU = torch.device("cpu")


def serving_ops(tuning: Tuning) -> Ops:
    """Every kernel; the places and tokens it would find are torch's or made up, since nothing is computed."""
    ops = kernels_of(tuning, 132)
    draw, find = ops.sample, ops.locate

    def sample(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        return torch.zeros_like(draw(logits, *rest))

    def locate(*arguments: Any) -> DecodeInputs:
        find(*arguments)
        return torch_ops.locate(*arguments)

    return replace(ops, sample=sample, locate=locate)


def attend_to_chunk(ops: Ops, cache: PagedCache, tokens: int) -> None:
    """The attention of a chunk of so many tokens at the end of two blocks, beside a short one."""
    c, last = CONFIG, 2 * cache.block_size
    blocks = torch.tensor([1, 2], dtype=torch.int32)
    spans = [ChunkSpan(0, tokens, last, blocks), ChunkSpan(tokens, tokens + 3, 3, blocks[:1])]
    assert ops.chunk_attention is not None
    attention = ops.chunk_attention(cache, torch.zeros(tokens + 3, dtype=torch.int64), spans)
    qkv = torch.zeros(tokens + 3, c.num_heads + 2 * c.num_kv_heads, c.head_dim, dtype=cache.keys[0].dtype)
    attention(0, *qkv.split([c.num_heads, c.num_kv_heads, c.num_kv_heads], dim=1))


def main(capability: int) -> None:
    dtype, tuning = choices_for(capability)
    ops = serving_ops(tuning)
    model = Model(CONFIG, allocate(CONFIG, CPU, dtype), 1024, ops)
    cache = PagedCache(CONFIG, 8, 64, CPU, dtype)
    # Attention rotates decodes alone, and beside prompts does not.
    ways = [Paths(each, plans_decode=True, buckets=BATCHES) for each in (ops, replace(ops, rotating_attention=None))]
    with torch.inference_mode(), unlaunched(capability) as compiled:
        for most, paths in itertools.product(MAX_RUNNING, ways):
            runner = TorchRunner(model, cache, most, 1024, paths)
            for batch in BATCHES:
                runner.decode(torch.full((batch,), runner.slots.spare), set(Method))
        for tokens in CHUNKS:
            attend_to_chunk(ops, cache, tokens)
    print(json.dumps(Counter(name for name, _ in compiled)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]))
