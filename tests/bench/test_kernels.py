"""The kernel benchmark runs from end to end without a GPU."""

import json
import subprocess
import sys

import pytest

COMMAND = [sys.executable, "-m", "tests.bench.kernels", "--tiny"]


def lines(*options: str) -> list[dict[str, object]]:
    printed = subprocess.run([*COMMAND, *options], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    return [json.loads(line) for line in printed.stdout.splitlines()]


def test_a_tiny_run_times_every_kernel_beside_torch() -> None:
    device, *cases = lines()
    assert float(str(device["gb_per_s"])) > 0
    kernels = {"add_rms_norm", "silu_mul", "rotate_and_cache", "sample", "linear", "norm_linear", "decode_attention"}
    assert {case["kernel"] for case in cases} == kernels
    for case in cases:
        assert float(str(case["microseconds"])) > 0, case
        assert float(str(case["torch_microseconds"])) > 0, case


def test_a_tiny_sweep_ranks_launch_choices_with_the_best_one_last() -> None:
    pytest.importorskip("triton")
    printed = lines("--sweep")
    for name in ("one_row", "few_rows_16", "attention"):
        times = [float(str(line["microseconds"])) for line in printed if line["sweep"] == name]
        assert len(times) == 2
        assert times[0] >= times[1]
