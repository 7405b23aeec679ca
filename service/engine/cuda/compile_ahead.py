"""Compiles the kernels that InternLM3-8B-Instruct is served with, on a machine that needs no GPU for it.

`python -m service.engine.cuda.compile_ahead FOLDER 80 90` takes the steps of a served model as GPUs of these compute
capabilities would, with tensors that hold nothing and kernels that are compiled but not launched, and leaves what was
compiled in FOLDER. Prints a JSON line for each of them. `kernels/shipped.py` is where it is found again.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from service.delivery.checks.nvidia_driver import BFLOAT16_CAPABILITY
from service.engine.attention import PagedCache, PrefillAttention
from service.engine.base import EngineConfig, GenerationRequest
from service.engine.config import INTERNLM3_8B, ModelConfig
from service.engine.cuda.paths import Paths
from service.engine.defaults import RUNNING_ON_GPU, Quantization
from service.engine.kernels.candidates import candidates, with_judged_rows
from service.engine.kernels.few_rows import FewRowsLinear
from service.engine.kernels.gemv import OneRowLinear
from service.engine.kernels.linear_check import chained, matrices
from service.engine.kernels.ops import AddNorm, Affine, Ops
from service.engine.kernels.tuning import CHAINS, Tuning, tuning_for
from service.engine.model import Model
from service.engine.quantization import empty_matrix
from service.engine.runner import TorchRunner
from service.engine.sampling import Method
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan
from service.engine.weights import allocate

META = torch.device("meta")
"""Tensors of which there is nothing but shape and type."""
LAYERS = 2
"""The first one has no residual to add, all others are alike."""
MULTIPROCESSORS = range(56, 193, 2)
"""Of most whole GPUs. How a product is divided among them decides which variants of its kernel serve; a smaller one, or
a slice of one, compiles some more at its first start."""


class AbsentGpu:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self._capability = capability
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        """A number for each capability: what is compiled for one device is not asked for again, whatever it is."""
        return self._capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


Compiled = dict[tuple[str, str], Any]
"""Kernels by name and hash, as Triton compiled them."""


@contextmanager
def unlaunched(capability: int) -> Iterator[Compiled]:
    """Kernels launched in the block are bound and compiled for such a GPU, noted, and not run. Triton's active driver
    is not restored."""
    compiled: Compiled = {}
    run = JITFunction.run

    def bind(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled[self.__name__, kernel.hash] = kernel
        return kernel

    driver.set_active(AbsentGpu(capability))
    JITFunction.run = bind
    try:
        yield compiled
    finally:
        JITFunction.run = run


def choices_for(capability: int) -> tuple[torch.dtype, Tuning]:
    """The type of numbers and the launch choices that such GPUs serve with."""
    version = divmod(capability, 10)
    dtype = torch.bfloat16 if version >= BFLOAT16_CAPABILITY else torch.float16
    return dtype, tuning_for(version).for_dtype(dtype)


def kernels_of(tuning: Tuning, multiprocessors: int, quantization: Quantization = "none") -> Ops:
    """Every kernel of a GPU of so many multiprocessors, as if all had proved right."""
    fields: dict[str, Any] = {}
    for candidate in candidates(tuning, multiprocessors, quantization):
        fields |= candidate.fields
    return with_judged_rows(replace(Ops(), **fields), tuning.tiles(quantization), quantization)


@torch.inference_mode()
def compile_kernels(model: ModelConfig, capability: int) -> Compiled:
    """All that serving `model` launches on GPUs of `capability` (90 for 9.0), quantized and not."""
    dtype, tuning = choices_for(capability)
    with unlaunched(capability) as compiled:
        for quantization in get_args(Quantization):
            ops = kernels_of(tuning, max(MULTIPROCESSORS), quantization)
            take_steps(replace(model, num_layers=LAYERS), ops, dtype, quantization)
            compute_products(model, tuning, dtype, quantization)
    return compiled


def take_steps(model: ModelConfig, ops: Ops, dtype: torch.dtype, quantization: Quantization) -> None:
    """Decodes of as many sequences as each tile of rows takes, and of more, alone and beside the end of a prompt."""
    layout = EngineConfig(kind="native", model_dir="")
    batches = (*(rows for rows in ops.judged_rows if rows <= RUNNING_ON_GPU), RUNNING_ON_GPU + 1)
    longest = min(layout.max_context, model.max_positions)
    cache = PagedCache(model, 2, layout.block_size, META, dtype)
    paths = Paths(ops, ops.chunk_attention or PrefillAttention, plans_decode=True)
    weights = allocate(model, META, dtype, quantization)
    runner = TorchRunner(Model(model, weights, longest, ops), cache, max(batches), longest, paths)
    for batch in batches:
        runner.decode(torch.empty(batch, dtype=torch.int64, device=META), set(Method))
        runner.launch(prompt_beside(batch - 1))


def prompt_beside(decodes: int) -> StepPlan:
    """The last token of a prompt, and decodes."""
    prompt, *others = (_sequence(slot) for slot in range(1 + decodes))
    return StepPlan([Chunk(prompt, 0, 1)], [Decode(sequence, 1) for sequence in others])


def _sequence(slot: int) -> Sequence:
    request = GenerationRequest(id=str(slot), prompt_ids=[0], max_new_tokens=2, stop_ids=[], deadline=0.0)
    return Sequence(request, arrival=0.0, slot=slot, blocks=[1])


def compute_products(model: ModelConfig, tuning: Tuning, dtype: torch.dtype, quantization: Quantization) -> None:
    """Products of one row, also those that a norm is fused with as long as that serves, and of more rows as GPUs of all
    sizes divide them."""
    one_row = OneRowLinear(tuning.one_row, overlaps=tuning.overlaps)
    tiles = tuning.tiles(quantization)
    few_rows = [
        FewRowsLinear(tiles, count, overlaps=tuning.overlaps, settles=tuning.settles) for count in MULTIPROCESSORS
    ]
    for width, depth, gated in matrices(model, model.vocab_size):
        weight = empty_matrix(width, depth, quantization, META, dtype)
        x = torch.empty(max(tiles), depth, dtype=dtype, device=META)
        one_row.linear(x[:1], weight, None, gated)
        for rows, kernel in itertools.product(tiles, few_rows):
            kernel.linear(x[:rows], weight, None, gated)
    if not tuning.skip & CHAINS:
        for rows, kernel in itertools.product(tiles, few_rows):
            compute_chains(model, kernel, rows, dtype, quantization)


def compute_chains(
    model: ModelConfig, kernel: FewRowsLinear, rows: int, dtype: torch.dtype, quantization: Quantization
) -> None:
    """Both chains of a layer."""
    residual = torch.empty(rows, model.hidden_size, dtype=dtype, device=META)
    for first, second in chained(model):
        into, out_of = (Affine(empty_matrix(*each[:2], quantization, META, dtype)) for each in (first, second))
        x = torch.empty(rows, first[1], dtype=dtype, device=META)
        kernel.chain(x, into, AddNorm(residual, residual[0], 0.0), out_of, second[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where compiled kernels are left")
    parser.add_argument("capability", type=int, nargs="+", help="of the GPUs to compile for: 90 for 9.0")
    options = parser.parse_args()
    knobs.cache.dir = options.folder
    # Of what Triton keeps of a kernel, only this is loaded.
    knobs.compilation.store_binary_only = True
    for capability in options.capability:
        compiled = compile_kernels(INTERNLM3_8B, capability)
        sys.stdout.write(json.dumps({"capability": capability, "kernels": len(compiled)}) + "\n")


if __name__ == "__main__":
    main()
