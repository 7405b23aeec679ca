"""Sections that are tests: what is measured is to be right first."""

from tests.bench.run import Run
from tests.bench.verify import run_gpu_tests


def verify_kernels(run: Run) -> None:
    """Every kernel, compiled, against its exact reference; on a CPU all are skipped, which is what this prints."""
    _verify(run, "tests/engine/kernels")


def verify_engine(run: Run) -> None:
    """The whole engine on the GPU against the exact model."""
    _verify(run, "tests/gpu")


def _verify(run: Run, tests: str) -> None:
    run.drop_core()
    found = run_gpu_tests(tests)
    counts = {"passed": found.passed, "failed": found.failed, "not_run": dict(found.not_run)}
    run.emit({"section": run.section, **counts})
    if run.on_gpu:
        found.require_a_gpu_ran_them()
    else:
        found.require_no_failure()
