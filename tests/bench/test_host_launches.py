"""The benchmark of the host's launches runs from end to end without a GPU."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_both_ways_are_measured_in_one_run() -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.bench.host_launches"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    found = json.loads(printed.stdout)
    assert found.keys() == {"launched_us", "recorded_us", "ratio"}
    assert found["ratio"] == pytest.approx(found["launched_us"] / found["recorded_us"], rel=0.02)
