"""Each decode kernel beside the torch operation it replaces and the memory limit measured in the same run.

    python -m tests.bench.kernels [--dtype bfloat16]                on a GPU, shapes of the 8B model
    python -m tests.bench.kernels --quantization int8 [...]         the same with eight-bit weights
    python -m tests.bench.kernels --sweep [--only few_rows_64,...]  on a GPU, how its launch choices do
    python -m tests.bench.kernels --tiny [--sweep]                  anywhere, to see that it runs

Prints JSON lines: `microseconds`, `torch_microseconds`, and `of_limit`, the share of the time that the bytes a kernel
must move would take at the measured bandwidth. `--sweep` prints each launch choice's time instead, over all that it is
timed on and for each, and the best of a group once more: that is what `service/engine/kernels/tuning.py` is filled
from. Every choice is compiled for every shape, some five hundred in all, which a command's time limit may be too short
for: `--only` takes some.
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import torch

from service.engine.config import INTERNLM3_8B
from service.engine.defaults import Quantization
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import prove
from service.engine.kernels.stopwatch import seconds
from service.engine.kernels.tuning import LinearTuning, Tuning
from tests.bench.kernel_cases import Case, cases
from tests.bench.sweep import Group, groups, timed
from tests.bench.timing import read_bandwidth

TINY = replace(
    INTERNLM3_8B, vocab_size=400, hidden_size=64, intermediate_size=96, num_heads=4, head_dim=16, max_positions=512
)


def report(case: Case, ops: Ops, bandwidth: float, device: torch.device) -> dict[str, object]:
    """One line of the output."""
    ours, plain = seconds(case.works(ops), device), seconds(case.works(Ops()), device)
    return {
        "kernel": case.kernel,
        **case.shape,
        "microseconds": round(ours * 1e6, 2),
        "torch_microseconds": round(plain * 1e6, 2),
        "gb_per_s": round(case.size / ours / 1e9, 2),
        "of_limit": round(case.size / bandwidth / ours, 3),
    }


def serving_ops(shapes: ServedShapes) -> tuple[Ops, list[str]]:
    """What would serve on this device; without a GPU the kernels themselves, in Triton's interpreter."""
    if shapes.device.type == "cuda":
        proof = prove(shapes)
        return proof.ops, proof.degraded
    try:
        from service.engine.kernels.candidates import candidates
    except ImportError as error:
        return Ops(), [f"triton: {error}"]
    wide = LinearTuning(block_n=64, block_k=64, warps=1, stages=1)
    tuning = Tuning("the interpreter", one_row=wide, rows=dict.fromkeys((16, 32, 64), wide))
    wanted = candidates(tuning, 4, shapes.quantization)
    return Ops(**{name: kernel for candidate in wanted for name, kernel in candidate.fields.items()}), []


def lines(shapes: ServedShapes, *, tiny: bool) -> Iterator[dict[str, object]]:
    """The device, then every case."""
    device = shapes.device
    ops, degraded = serving_ops(shapes)
    bandwidth = read_bandwidth(device, 2**20 if tiny else 2**31)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    yield {"device": name, "gb_per_s": round(bandwidth / 1e9, 1), "degraded": degraded}
    for case in cases(shapes, tiny=tiny):
        yield report(case, ops, bandwidth, device)


def named(found: list[Group], only: str) -> list[Group]:
    """Those of these names, all for none. Raises ValueError for a name that none has."""
    wanted = set(only.split(",")) - {""}
    if unknown := wanted - {group.name for group in found}:
        known = ", ".join(group.name for group in found)
        raise ValueError(f"no such launch choices: {', '.join(sorted(unknown))}; there are {known}")
    return [group for group in found if not wanted or group.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    parser.add_argument("--tiny", action="store_true", help="a small model, on a CPU too")
    parser.add_argument("--sweep", action="store_true", help="time launch choices")
    parser.add_argument("--only", default="", help="with --sweep: one_row, few_rows_16, ..., decode_attention")
    options = parser.parse_args()
    if options.only and not options.sweep:
        parser.error("--only chooses among what --sweep times")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        if not options.tiny:
            parser.error("no GPU here; --tiny shows that the command runs")
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which nothing above does
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, options.dtype)
    model, block_size = (TINY, 16) if options.tiny else (INTERNLM3_8B, 64)
    shapes = ServedShapes(model, block_size, dtype, device, quantization=options.quantization)
    printed = lines(shapes, tiny=options.tiny)
    if options.sweep:
        try:
            chosen = named(groups(shapes, tiny=options.tiny), options.only)
        except ValueError as error:
            parser.error(str(error))
        printed = (line for group in chosen for line in timed(group, device))
    with torch.inference_mode():
        for line in printed:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
