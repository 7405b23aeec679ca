"""The test run itself: a test that ends its process fails, and all others are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.conftest import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler\n"
HARMLESS = "def test_one(): pass\ndef test_two(): pass\n"
DEADLY = "import os\n" + HARMLESS + "def test_three(): os._exit(1)\n"


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_test_that_ends_its_process_fails_alone_and_keeps_nobody_waiting(tmp_path: Path, processes: int) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in {"a": HARMLESS, "b": DEADLY, "c": HARMLESS, "d": HARMLESS}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(processes), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_ADDOPTS", None)
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert re.search(r"^1 failed, 8 passed", run.stdout, re.MULTILINE), run.stdout + run.stderr
    assert "test_b.py::test_three" in run.stdout
