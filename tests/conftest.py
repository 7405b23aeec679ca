"""What every test gets: an environment without our settings, children that Ctrl-C reaches, and, where there is no GPU,
Triton's interpreter and one thread for torch."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.gpu import has_gpu_device

# Settled when Triton and torch are first imported, which any test module may do while it is collected: before them all.
if not has_gpu_device():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    # It is processes that share the cores. Threads of each, that wait for each other, cost a fifth of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from service.settings import PREFIX
from tests.support.smollm2 import smollm2_dir as smollm2_dir


def pytest_configure() -> None:
    """A shell that starts pytest in the background has it ignore Ctrl-C, which the children of tests would inherit and
    then not end. A handler is not inherited: with one that does nothing, they start as on a terminal."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda *_: None)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


MOST_WORKERS = 2
"""Enough for what waits to be done beside what computes. A container may have fewer cores than it sees, and what is
timed fails where more compute at once."""
ONE_CLUSTER = ("tests/e2e/", "tests/image/")
"""What builds images and runs them shares one store of them. It takes longest, and mostly waits."""
CLUSTER = "cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster's come first, all others stay in order."""
    items.sort(key=lambda item: not item.nodeid.startswith(ONE_CLUSTER))


def computing_workers() -> int:
    """How many processes compute at once: one where there is a GPU, since tests fill its memory."""
    return 1 if has_gpu_device() else min(os.cpu_count() or 1, MOST_WORKERS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many processes `-n auto` makes: those that compute, and one for the cluster."""
    return computing_workers() + bool(os.environ.get("E2E"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one process and in order, and so do its fixtures; files are begun in order, too."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return CLUSTER if file.startswith(ONE_CLUSTER) else file

        def remove_node(self, node: Any) -> str | None:
            """What a process leaves that a test has ended, as one that takes too long does. xdist would run that test
            again, and hand out files of which all is done."""
            files = self.assigned_work.pop(node)
            left = [(tests, test) for tests in files.values() for test, is_done in tests.items() if not is_done]
            if not left:
                return None
            tests, deadly = left[0]
            tests[deadly] = True
            self.workqueue.update((file, tests) for file, tests in files.items() if not all(tests.values()))
            for other in self.nodes:
                self._reschedule(other)
            return deadly

        def _reschedule(self, node: Any) -> None:
            if CLUSTER in self.assigned_work[node] and len(self.nodes) > computing_workers():
                self._let_go(node)
                return
            super()._reschedule(node)
            super()._reschedule(node)  # with one test alone a process waits to be told of the next one

        def _let_go(self, node: Any) -> None:
            """End the process that is one more than may compute, when it has done what it was for."""
            if self._pending_of(self.assigned_work[node]) <= 1 and not node.shutting_down:
                node.shutdown()

    config.option.loadscopereorder = False  # to begin with the most tests would be to end with the longest ones
    return ByFile(config, log)


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Say a figure that was measured, passed or not: it is printed when the run ends."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands in what was measured in it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = session.config.stash.get(FIGURES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    figures = getattr(node, "workeroutput", {}).get("figures", [])
    node.config.stash.setdefault(FIGURES, []).extend(figures)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.line(figure)
