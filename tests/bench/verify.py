"""The tests that need a GPU as a section of the benchmark, counted: to pytest, all skipped is a success."""

import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

TESTED_ELSEWHERE = "tests/gpu has the engine on a GPU"
"""The one reason to skip on a GPU: another section runs that test's counterpart."""
FAILED = re.compile(r"\b(FAILED|ERROR)\b")


@dataclass(frozen=True)
class Verification:
    """What became of a run of tests. `not_run`: the reasons of tests that were skipped, and how many by each."""

    passed: int
    failed: int
    not_run: Counter[str]
    output: str

    def require_a_gpu_ran_them(self) -> None:
        """Raise RuntimeError unless every test ran, at least one did, and all passed."""
        self.require_no_failure()
        missing = {reason: count for reason, count in self.not_run.items() if TESTED_ELSEWHERE not in reason}
        if missing or not self.passed:
            raise RuntimeError(f"{self.passed} tests passed on the GPU; not run: {missing}")

    def require_no_failure(self) -> None:
        """Raise RuntimeError with the end of what pytest printed when a test failed."""
        if self.failed:
            raise RuntimeError(self.output[-2000:])


def run_gpu_tests(tests: str) -> Verification:
    """Run the tests marked gpu under `tests`. Each one that fails is named on standard error when it does, since the
    report is written last, and a command that is cut off has none; why it failed is printed there at the end."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        # What another library warns of says nothing of the GPU, and versions on a GPU host are the host's.
        options = ["-v", "-W", "default", "-m", "gpu", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, tests]
        output, status = _output_of(command)
        if status:
            print(output[max(output.find("= FAILURES ="), 0) :], file=sys.stderr)
        if not report.exists():
            raise RuntimeError(output[-2000:])
        return verification_of(report, status, output)


def _output_of(command: list[str]) -> tuple[str, int]:
    """What it printed, and its exit status."""
    unbuffered, lines = os.environ | {"PYTHONUNBUFFERED": "1"}, []
    with subprocess.Popen(
        command, env=unbuffered, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if FAILED.search(line):
                print(line, end="", file=sys.stderr, flush=True)
    return "".join(lines), process.returncode


def verification_of(report: Path, status: int, output: str) -> Verification:
    """Count the outcomes of a JUnit report; an exit status that it does not explain is a failure."""
    passed, failed, not_run = 0, 0, Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        elif skipped is not None:
            not_run[skipped.get("message", "")] += 1
        else:
            passed += 1
    return Verification(passed, failed or int(status != 0), not_run, output)
