"""The test run itself: a test that ends its process fails, and all others are run; the cluster has its own process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import computing_workers
from tests.support.gpu import has_gpu_device

ROOT = Path(__file__).parents[2]
HOOKS = ("pytest_collection_modifyitems", "pytest_xdist_auto_num_workers", "pytest_xdist_make_scheduler")
CONFTEST = "".join(f"from tests.conftest import {hook} as {hook}\n" for hook in HOOKS)
HARMLESS = "def test_one(): pass\ndef test_two(): pass\n"
DEADLY = "import os\n" + HARMLESS + "def test_three(): os._exit(1)\n"
SAY_WHERE = """
import os, time, pytest
@pytest.mark.parametrize("n", range(4))
def test_where(n, request):
    time.sleep(0.1)
    with open(os.environ["SAID"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " " + request.node.nodeid.partition("::")[0] + "\\n")
"""


def run_of(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A run of the tests in `folder` by the scheduler of this project's."""
    (folder / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(has_gpu_device(), reason="one process computes where there is a GPU")
def test_what_waits_for_a_cluster_is_begun_first_in_a_process_that_does_nothing_else(tmp_path: Path) -> None:
    files = [f"tests/api/test_{n}.py" for n in range(8)]
    cluster = ["tests/e2e/test_a.py", "tests/image/test_b.py"]
    for file in files + cluster:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(SAY_WHERE)
    (tmp_path / "pytest.ini").touch()
    run = run_of(tmp_path, "-n", "auto", E2E="1", SAID=str(tmp_path / "said"))
    assert re.search(r"^40 passed", run.stdout, re.MULTILINE), run.stdout + run.stderr
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    first = {file: next(n for n, (_, each) in enumerate(said) if each == file) for file in files + cluster}
    assert first[cluster[0]] < first[files[-1]]
    by_process = {worker: {file for each, file in said if each == worker} for worker, _ in said}
    assert set(cluster) in by_process.values()
    assert len(by_process) == computing_workers() + 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_test_that_ends_its_process_fails_alone_and_keeps_nobody_waiting(tmp_path: Path, processes: int) -> None:
    for name, text in {"a": HARMLESS, "b": DEADLY, "c": HARMLESS, "d": HARMLESS}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    run = run_of(tmp_path, "-n", str(processes))
    assert re.search(r"^1 failed, 8 passed", run.stdout, re.MULTILINE), run.stdout + run.stderr
    assert "test_b.py::test_three" in run.stdout
