"""Compiles every kernel for the given GPUs, as served with an 8B model, on a machine that needs none of them.

`python -m tests.engine.kernels.compile_for 80 90` prints one JSON line a kernel: shared memory and local-memory stack
in bytes, registers, the widest global load in bytes, and what is read before the wait for inputs. Needs
TRITON_INTERPRET unset.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from service.engine.kernels import (
    attention_plan,
    few_rows,
    gemv,
    locate,
    norm,
    paged_attention,
    rope,
    sampling,
    silu,
)
from service.engine.kernels.batch import CHUNK_QUERIES, USUAL_ROWS
from service.engine.kernels.overlap import launch_options
from service.engine.kernels.tuning import AttentionTuning, LinearTuning, Tuning, tuning_for

WAIT = "griddepcontrol.wait"
LONG = (
    "positions",
    "places",
    "tokens",
    "slots",
    "slot_tokens",
    "slot_positions",
    "first_query",
    "seed",
    "method",
    "top_k",
)
SHORT = ("block_tables", "lengths", "query_count", "item_row", "item_start", "first_item", "tiles_per_item")
REAL = ("cos", "sin", "partial", "partial_lse", "temperature", "top_p", "penalty", "group_best", "chunk_sum")
POINTERS = {
    **dict.fromkeys((*LONG, "seed", "method", "top_k"), "*i64"),
    **dict.fromkeys((*SHORT, "chunk_winner", "arrivals"), "*i32"),
    **dict.fromkeys(REAL, "*fp32"),
    "seen": "*i1",
}
SCALARS = {"int": "i32", "i32": "i32", "float": "fp32", "fp32": "fp32"}
ALIGNED = {"width", "N", "K", "depth", "vocab", "q_stride", "table_stride"}


def launches(tuning: Tuning) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """Every kernel with its constants and launch options."""
    attention, one = tuning.attention, tuning.one_row
    fused = {"K": 4096, "HAS_RESIDUAL": True, "HAS_NORM": True, "HAS_BIAS": False, "BLOCK_K": one.block_k}
    one_options = {"num_warps": one.warps, "num_stages": one.stages}
    groups = {"BLOCK_GROUPS": 1024, "BLOCK_CHUNKS": 64, "CHUNK_GROUPS": sampling.CHUNK_GROUPS}
    found = [
        (silu.silu_mul_kernel, {"BLOCK": silu.BLOCK}, {"num_warps": 4}),
        (norm.add_rms_norm_kernel, {"HAS_RESIDUAL": True, "BLOCK": 4096}, {"num_warps": 8}),
        (
            rope.rotate_and_cache_kernel,
            {"HEADS": 32, "KV_HEADS": 2, "HALF": 64, "BLOCK_HEADS": rope.BLOCK_HEADS},
            {"num_warps": 2},
        ),
        (locate.locate_kernel, {"BLOCK_SIZE": 64, "BLOCK": locate.BLOCK}, {"num_warps": 4}),
        (
            attention_plan.plan_kernel,
            {"SPARE": 132, "TILE": attention.tile, "BLOCK_ROWS": USUAL_ROWS, "BLOCK_ITEMS": 2 * USUAL_ROWS},
            {"num_warps": 4},
        ),
        *attention_launches(attention, 1),
        *([] if "chunk_attention" in tuning.skip else attention_launches(tuning.chunks, CHUNK_QUERIES)),
        (gemv.one_row_kernel, {**fused, "GATED": False, "BLOCK_N": one.block_n}, one_options),
        (gemv.one_row_kernel, {**fused, "GATED": True, "BLOCK_N": one.block_n // 2}, one_options),
        *(launch for rows, few in tuning.few_rows.items() for launch in few_rows_launches(rows, few)),
        (sampling.scan_kernel, {"CHUNK_GROUPS": sampling.CHUNK_GROUPS}, {"num_warps": 4}),
        (sampling.draw_kernel, groups, {"num_warps": 16}),
    ]
    overlap = launch_options(tuning.overlaps)
    is_constant = {"OVERLAPS": overlap.pop("OVERLAPS")}
    return [(kernel, constants | is_constant, options | overlap) for kernel, constants, options in found]


def attention_launches(tuning: AttentionTuning, queries: int) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """An attention of so many queries a row, and the merge of its parts."""
    heads = {"KV_HEADS": 2, "GROUP": 16, "GROUP_PAD": 16, "HEAD_DIM": 128, "BLOCK_SIZE": 64, "TILE": tuning.tile}
    merged = {"HEADS": 32, "HEAD_DIM": 128, "BLOCK_ITEMS": 16, "BLOCK_HEADS": paged_attention.MERGED_HEADS}
    options = {"num_warps": tuning.warps, "num_stages": tuning.stages}
    return [
        (paged_attention.attend_kernel, {**heads, "QUERIES": queries}, options),
        (paged_attention.merge_kernel, {**merged, "QUERIES": queries}, {"num_warps": paged_attention.MERGED_HEADS}),
    ]


def few_rows_launches(rows: int, tuning: LinearTuning) -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """A tile's three ways: alone, gated, and as one of several parts."""
    plain = {"HAS_BIAS": False, "EVEN": True, "BLOCK_M": rows, "BLOCK_K": tuning.block_k, "PIECE": 256}
    options = {"num_warps": tuning.warps, "num_stages": tuning.stages}
    ways = []
    for gated, split in ((False, False), (True, False), (False, True)):
        block_n = max(16, tuning.block_n // (2 if gated else 1))
        pieces = max(1, tuning.warps * 32 // block_n)
        constants = {"GATED": gated, "SPLIT": split, "BLOCK_N": block_n, "PIECES": pieces}
        ways.append((few_rows.few_rows_kernel, plain | constants, options))
    return ways


def compile_kernel(kernel: Any, constants: dict[str, Any], options: dict[str, Any], capability: int) -> dict[str, Any]:
    """The report on one kernel for one GPU; pointers and the model's sizes are multiples of 16, as when serving."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    # Half-precision cards before Ampere have no bf16.
    weights = "*bf16" if capability >= 80 else "*fp16"
    for index, parameter in enumerate(kernel.params):
        if parameter.name in constants:
            signature[parameter.name] = "constexpr"
            continue
        signature[parameter.name] = SCALARS.get(parameter.annotation) or POINTERS.get(parameter.name, weights)
        if signature[parameter.name].startswith("*") or parameter.name in ALIGNED:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    widths = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    async_copies = "cp.async" in ptx
    return {
        "kernel": kernel.__name__,
        "capability": capability,
        "shared": compiled.metadata.shared,
        "widest_load": max([int(n or 1) * int(bits) // 8 for n, bits in widths] + [16 * async_copies]),
        "waits": ptx.count(WAIT),
        "read_before_wait": read_before_wait(ptx, [p.name for p in kernel.params if p.name not in constants]),
        **resources(compiled.asm["cubin"]),
    }


def read_before_wait(ptx: str, parameters: list[str]) -> list[str]:
    """The parameters from which the addresses of memory accesses follow that precede the wait for inputs."""
    entry = ptx[ptx.index(".reqntid") : ptx.find(WAIT)] if WAIT in ptx else ""
    sources: dict[str, set[str]] = {}
    found: set[str] = set()
    for line in map(str.strip, entry.splitlines()):
        # The last address of a copy is the one it reads; all others have one.
        if access := re.search(r"\b(?:ld|st|atom|red|cp|prefetch)\.(?!param).*\[ ?(%\w+)", line):
            found |= sources.get(access[1], set())
        if written := re.match(r"(?:@%\w+ )?[\w.:]+\s+(%\w+), (.*);", line):
            of_parameter = re.search(r"_param_(\d+)", written[2])
            read = (
                {parameters[int(of_parameter[1])]} if of_parameter and int(of_parameter[1]) < len(parameters) else set()
            )
            sources[written[1]] = read.union(*(sources.get(each, set()) for each in re.findall(r"%\w+", written[2])))
    return sorted(found)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of stack, which lie in slow local memory."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found, printed
    return {"registers": int(found[1]), "stack": int(found[2])}


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        for kernel, constants, options in launches(tuning_for((capability // 10, capability % 10))):
            print(json.dumps(compile_kernel(kernel, constants, options, capability)), flush=True)


if __name__ == "__main__":
    main()
