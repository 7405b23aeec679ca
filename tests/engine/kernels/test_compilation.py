"""Every kernel compiles for the GPU generations we name, fits them, and keeps its values in registers."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.kernels.conftest import HAS_GPU

KIB = 1024
# Most shared memory of one block, from NVIDIA's CUDA C++ Programming Guide, table of technical specifications; what 8.0
# is given must fit 8.6 and 8.9, too, which have less.
SHARED_LIMIT = {75: 64 * KIB, 80: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB}
STREAMING = {"silu_mul_kernel", "add_rms_norm_kernel", "attend_kernel", "attend_rotating_kernel"}
STREAMING |= {"one_row_kernel", "few_rows_kernel"}
IN_ONE_PROCESS = (75, 90)
"""What was compiled for one GPU is not taken for another's."""
Report = dict[str, Any]
Compiled = Callable[[int], tuple[Path, list[Report]]]


def run(cache: Path, module: str, *arguments: object) -> list[Report]:
    """In a process of its own: this one's Triton interprets. What it compiles is kept in `cache`."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Where all kernels for GPUs of a capability were compiled, and what there is to know of each: done once for all
    tests."""
    pytest.importorskip("triton")

    @functools.cache
    def compile_for(capabilities: tuple[int, ...]) -> tuple[Path, list[Report]]:
        folder = tmp_path_factory.mktemp("triton")
        return folder, run(folder, "tests.engine.kernels.compile_for", *capabilities)

    def compiled_for(capability: int) -> tuple[Path, list[Report]]:
        folder, reports = compile_for(IN_ONE_PROCESS if capability in IN_ONE_PROCESS else (capability,))
        return folder, [report for report in reports if report["capability"] == capability]

    return compiled_for


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU host compiles for its own GPU in the tests marked gpu")
@pytest.mark.parametrize(("capability", "kernels"), [(75, 28), (80, 104), (90, 105), (100, 104), (120, 104)])
def test_kernels_fit_the_gpu_without_a_gpu(capability: int, kernels: int, compiled: Compiled) -> None:
    _, reports = compiled(capability)
    assert len(reports) == kernels
    for report in reports:
        assert int(report["shared"]) <= SHARED_LIMIT[capability], report
        assert int(report["stack"]) <= 64, report  # spilled registers: a few bytes at most, and not in a loop's core
        if report["kernel"] in STREAMING:
            assert report["widest_load"] == 16, report
        if report["kernel"] == "few_rows_kernel":
            assert report["products_of_registers_under_way"] == 0, report  # see `settled`
        # Nothing but weights, and the numbers that say where they are: all else may still be written by others.
        assert report["waits"] == (1 if capability >= 90 else 0), report
        assert set(report["read_before_wait"]) <= {"weight", "scales", "N", "K", "whole", "parts", "depth"}, report


def test_a_launch_that_overlaps_says_so_to_the_kernel_and_to_the_driver() -> None:
    pytest.importorskip("triton")
    from service.engine.kernels.overlap import launch_options

    assert launch_options(True) == {"OVERLAPS": True, "launch_pdl": True}
    assert launch_options(False) == {"OVERLAPS": False}


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU host launches in the tests marked gpu")
def test_decodes_of_every_batch_size_bind_and_share_what_takes_long_to_compile(tmp_path: Path) -> None:
    """Where a row's parameters begin in memory follows from the batch size, and must not have the samplers, which take
    seconds, compiled anew."""
    pytest.importorskip("triton")
    (compiled,) = run(tmp_path, "tests.engine.kernels.bind_for", 90)
    assert compiled.keys() == {
        "add_rms_norm_kernel",
        "rotate_and_cache_kernel",
        "locate_kernel",
        "plan_kernel",
        "attend_kernel",
        "attend_rotating_kernel",
        "merge_kernel",
        "silu_mul_kernel",
        "one_row_kernel",
        "few_rows_kernel",
        "scan_kernel",
        "draw_kernel",
    }
    # For decodes, few and many, and for chunks of prompts; five tiles, each plain, into the residual
    # stream, gated out of it, and, but for the first, in parts; by what is fused, by shape.
    several = dict.fromkeys(("plan_kernel", "attend_kernel", "add_rms_norm_kernel"), 2) | {"merge_kernel": 3}
    several |= {"few_rows_kernel": 5 * 3 + 4, "one_row_kernel": 5}
    assert compiled == dict.fromkeys(compiled, 1) | several


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU host compiles for its own GPU in the tests marked gpu")
def test_what_was_compiled_ahead_is_all_that_is_proved_and_served(tmp_path: Path, compiled: Compiled) -> None:
    folder, reports = compiled(90)
    (found,) = run(tmp_path, "tests.engine.kernels.prove_for", 90, folder)
    assert found["compiled"] == []
    assert len(reports) == len(found["served"])
    assert set(found["proved"]) <= set(found["served"])
    # Products that only a GPU of another size divides so, or does not divide.
    assert len(set(found["served"]) - set(found["proved"])) <= 20


@pytest.mark.slow
@pytest.mark.skipif(HAS_GPU, reason="a GPU host compiles for its own GPU in the tests marked gpu")
def test_what_an_image_brings_along_is_no_more_than_what_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    (said,) = run(own, "service.engine.cuda.compile_ahead", shipped, 75)
    assert said == {"capability": 75, "kernels": 28}
    kinds = {file.suffix for file in shipped.rglob("*")}
    assert ".cubin" in kinds
    assert kinds.isdisjoint({".ttir", ".ttgir", ".llir", ".ptx"}), "stages on the way there"
    (found,) = run(own, "tests.engine.kernels.prove_for", 75, shipped)
    assert found["compiled"] == []
    assert len(found["served"]) == said["kernels"]
