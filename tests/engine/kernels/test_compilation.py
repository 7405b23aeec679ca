"""Every kernel compiles for the GPU generations we name, fits them, and keeps its values in registers."""

import json
import os
import subprocess
import sys

import pytest

from tests.engine.kernels.conftest import HAS_GPU

KIB = 1024
# Most shared memory of one block, from NVIDIA's CUDA C++ Programming Guide, table of technical specifications.
SHARED_LIMIT = {75: 64 * KIB, 80: 163 * KIB, 89: 99 * KIB, 90: 227 * KIB, 120: 99 * KIB}
STREAMING = {"silu_mul_kernel", "add_rms_norm_kernel", "attend_kernel", "one_row_kernel", "few_rows_kernel"}


def compile_for(capability: int) -> list[dict[str, int | str]]:
    """In a process of its own: this one's Triton interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.engine.kernels.compile_for", str(capability)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU host compiles for its own GPU in the tests marked gpu")
@pytest.mark.parametrize("capability", [75, 89, 90])
def test_kernels_fit_the_gpu_without_a_gpu(
    capability: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    reports = compile_for(capability)
    assert len(reports) == 12
    for report in reports:
        assert int(report["shared"]) <= SHARED_LIMIT[capability], report
        assert int(report["stack"]) <= 64, report  # spilled registers: a few bytes at most, and not in a loop's core
        if report["kernel"] in STREAMING:
            assert report["widest_load"] == 16, report


PRINT_ALIGNED = """
from service.engine.kernels.sampling import draw_kernel, scan_kernel
for kernel in (scan_kernel, draw_kernel):
    print(*(p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize_on_alignment))
"""


@pytest.mark.skipif(HAS_GPU, reason="a GPU host compiles for its own GPU in the tests marked gpu")
def test_the_samplers_are_compiled_once_for_all_batch_sizes() -> None:
    """A row's parameters begin wherever the batch size puts them, the rest where an allocation begins."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PRINT_ALIGNED]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    scan, draw = (set(line.split()) for line in printed.splitlines())
    fresh = {"logits", "seen", "group_best", "chunk_sum", "chunk_winner", "vocab", "groups", "chunks"}
    assert (scan, draw) == (fresh, fresh | {"out"})
