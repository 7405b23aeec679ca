"""Compiles every kernel for the given GPUs, as served with the 8B model, on a machine that needs none of them.

`python -m tests.engine.kernels.compile_for 80 90` prints one JSON line a kernel: shared memory and local-memory stack
in bytes, registers, the widest global load in bytes, what is read before the wait for inputs, and how many products may
be under way that read registers. Needs TRITON_INTERPRET unset.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton

from service.engine.config import INTERNLM3_8B
from service.engine.cuda.compile_ahead import compile_kernels

WAIT = "griddepcontrol.wait"


def report(name: str, compiled: Any) -> dict[str, Any]:
    """What there is to know of one kernel."""
    ptx = compiled.asm["ptx"]
    widths = re.findall(r"ld\.global\S*?(?:\.v(\d))?\.b(\d+)", ptx)
    async_copies = "cp.async" in ptx
    parameters = [parameter for parameter, kind in compiled.src.signature.items() if kind != "constexpr"]
    return {
        "kernel": name,
        "shared": compiled.metadata.shared,
        "widest_load": max([int(n or 1) * int(bits) // 8 for n, bits in widths] + [16 * async_copies]),
        "waits": ptx.count(WAIT),
        "read_before_wait": read_before_wait(ptx, parameters),
        "products_of_registers_under_way": products_of_registers_under_way(ptx),
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


def products_of_registers_under_way(ptx: str) -> int:
    """How many groups of tensor-core products may be unfinished after a wait, of a kernel that has their left operand
    in registers: the registers must not be written meanwhile, which PTX leaves to whoever writes the kernel."""
    reads_registers = re.search(r"wgmma\.mma_async\S+\s+\{[^}]*\},\s*\{", ptx)
    waits = re.findall(r"wgmma\.wait_group\S*\s+(\d+)", ptx)
    return max(map(int, waits)) if reads_registers and waits else 0


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
        for (name, _), compiled in compile_kernels(INTERNLM3_8B, capability).items():
            print(json.dumps({"capability": capability, **report(name, compiled)}), flush=True)


if __name__ == "__main__":
    main()
