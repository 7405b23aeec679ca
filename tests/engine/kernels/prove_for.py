"""The self-check of a GPU that is not there: its kernels are bound and compiled, not launched, and no result is judged.

`python -m tests.engine.kernels.prove_for 90 FOLDER` prints the variants of kernels that are checked before serving,
those that then serve, and what had to be compiled for both although FOLDER holds what was compiled ahead.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import torch
from triton import knobs

from service.engine.config import INTERNLM3_8B
from service.engine.cuda.compile_ahead import LAYERS, Compiled, choices_for, compile_kernels, unlaunched
from service.engine.defaults import Quantization
from service.engine.kernels import checks, decode_check, linear_check, prefill_check, shipped
from service.engine.kernels.candidate import Disagreement, ServedShapes
from service.engine.kernels.candidates import candidates, with_judged_rows
from service.engine.kernels.ops import Ops
from service.engine.quantization import Matrix, empty_matrix

MULTIPROCESSORS = 132


class Unfilled(ServedShapes):
    """Matrices of whatever was in memory: nobody multiplies with them."""

    def matrix(self, width: int, depth: int) -> Matrix:
        return empty_matrix(width, depth, self.quantization, self.device, self.dtype)


def unmultiplied(x: torch.Tensor, weight: Matrix, bias: torch.Tensor | None, gated: bool) -> torch.Tensor:
    """A product's shape, without its numbers: what torch would take a minute for."""
    return x.new_zeros(x.shape[0], weight.shape[0] // (2 if gated else 1))


@contextmanager
def unjudged() -> Iterator[None]:
    """Whatever a kernel that was not launched left in its result is as good as another."""
    with ExitStack() as patches:
        for module in (checks, decode_check, linear_check, prefill_check):
            patches.enter_context(patch.object(module, "require_close"))
        patches.enter_context(patch.object(linear_check, "_linear", unmultiplied))
        yield


@torch.inference_mode()
def proved(capability: int) -> Compiled:
    """What the self-check launches."""
    dtype, tuning = choices_for(capability)
    served = Unfilled(replace(INTERNLM3_8B, num_layers=LAYERS), 64, dtype, torch.device("cpu"))
    with unlaunched(capability) as compiled, unjudged():
        for quantization in get_args(Quantization):
            plain = with_judged_rows(Ops(), tuning.tiles(quantization), quantization)
            shapes = replace(served, quantization=quantization)
            for candidate in candidates(tuning, MULTIPROCESSORS, quantization):
                with suppress(Disagreement):
                    candidate.check(replace(plain, **candidate.fields), shapes)
    return compiled


def main() -> None:
    capability, shipped.FOLDER = int(sys.argv[1]), Path(sys.argv[2])
    shipped.use_shipped_kernels()
    found: dict[str, list[str]] = {"compiled": []}

    def note(*, src: Any, cache_hit: bool, **_: object) -> None:
        if not cache_hit:
            found["compiled"].append(f"{src.name} {src.constants}")

    knobs.compilation.listener = note
    for name, kernels in (("proved", proved(capability)), ("served", compile_kernels(INTERNLM3_8B, capability))):
        found[name] = sorted(f"{kernel} {key}" for kernel, key in kernels)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
