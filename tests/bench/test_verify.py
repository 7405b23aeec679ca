"""A verification that verified nothing is none: passed, failed and skipped tests are told apart by their counts."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.bench.results_file import Line
from tests.bench.run import Run
from tests.bench.scale import TINY
from tests.bench.sections import SECTIONS, verification
from tests.bench.verify import TESTED_ELSEWHERE, Verification, run_gpu_tests
from tests.support.gpu import has_gpu_device

NO_GPU = "needs an NVIDIA GPU and TRITON_INTERPRET unset"
PASSES = "import pytest\n@pytest.mark.gpu\ndef test_it():\n    pass\n"
SKIPS = f"import pytest\n@pytest.mark.gpu\ndef test_it():\n    pytest.skip({NO_GPU!r})\n"
FAILS = "import pytest\n@pytest.mark.gpu\ndef test_it():\n    assert False, 'the kernel lies'\n"
BREAKS = "import no_such_module\n"


@pytest.mark.parametrize(
    ("files", "passed", "failed", "not_run"),
    [
        ([PASSES, PASSES], 2, 0, 0),
        ([PASSES, SKIPS], 1, 0, 1),
        ([PASSES, FAILS], 1, 1, 0),
        ([BREAKS], 0, 1, 0),
        ([], 0, 1, 0),
    ],
    ids=["all pass", "one skipped", "one fails", "one cannot be read", "none"],
)
def test_the_outcomes_of_a_run_are_counted(
    tmp_path: Path, files: list[str], passed: int, failed: int, not_run: int
) -> None:
    for number, text in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    found = run_gpu_tests(str(tmp_path))
    assert (found.passed, found.failed, found.not_run.total()) == (passed, failed, not_run)


def test_a_test_that_fails_is_named_before_the_others_are_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command's time limit may come before the report."""
    (tmp_path / "test_a.py").write_text(FAILS)
    ends = "import os, pytest\n@pytest.mark.gpu\ndef test_it():\n    os._exit(9)\n"
    (tmp_path / "test_b.py").write_text(ends)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    with pytest.raises(RuntimeError):
        run_gpu_tests(str(tmp_path))
    assert "test_a.py::test_it FAILED" in capfd.readouterr().err


def test_why_a_test_failed_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_a.py").write_text(FAILS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    run_gpu_tests(str(tmp_path))
    assert "AssertionError: the kernel lies" in capfd.readouterr().err


def test_a_warning_of_another_version_fails_no_verification(tmp_path: Path) -> None:
    warns = "import pytest, warnings\n@pytest.mark.gpu\ndef test_it():\n    warnings.warn('deprecated')\n"
    (tmp_path / "test_a.py").write_text(warns)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\nfilterwarnings = error\n")
    assert run_gpu_tests(str(tmp_path)).passed == 1


@pytest.mark.parametrize(
    ("passed", "failed", "not_run", "complaint"),
    [
        (3, 0, {}, None),
        (3, 0, {TESTED_ELSEWHERE: 2}, None),
        (0, 0, {}, "0 tests passed"),
        (0, 0, {TESTED_ELSEWHERE: 2}, "0 tests passed"),
        (0, 0, {NO_GPU: 200}, NO_GPU),
        (3, 0, {NO_GPU: 1}, NO_GPU),
        (3, 0, {"could not import 'triton'": 1}, "could not import 'triton'"),
        (3, 1, {}, "the kernel lies"),
    ],
)
def test_on_a_gpu_every_test_must_have_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passed: int,
    failed: int,
    not_run: dict[str, int],
    complaint: str | None,
) -> None:
    found = Verification(passed, failed, Counter(not_run), "the kernel lies")
    monkeypatch.setattr(verification, "run_gpu_tests", lambda tests: found)
    printed: list[Line] = []
    for section in ("verify_kernels", "verify_engine"):
        run = Run(TINY, tmp_path, torch.device("cuda"), printed.append)
        run.section = section
        if complaint is None:
            SECTIONS[section].run(run)
        else:
            with pytest.raises(RuntimeError, match=complaint):
                SECTIONS[section].run(run)
        assert printed[-1] == {"section": section, "passed": passed, "failed": failed, "not_run": not_run}


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["nvidia0"], True), (["nvidia3"], True), (["nvidia12"], True), (["nvidiactl", "nvidia-uvm", "null"], False)],
)
def test_a_gpu_of_any_number_is_a_gpu(tmp_path: Path, names: list[str], expected: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert has_gpu_device(tmp_path) is expected


def test_a_gpu_is_looked_for_before_torch_and_triton_are_imported() -> None:
    program = "import sys, tests.support.gpu; print({'torch', 'triton'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert found.stdout.strip() == "set()"
