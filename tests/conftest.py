"""What every test gets: an environment without our settings, children that Ctrl-C reaches, and Triton's interpreter
where there is no GPU."""

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.gpu import has_gpu_device

# Settled when Triton is first imported, which any test module may do while it is collected: so before them all.
if not has_gpu_device():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Say a figure that was measured, passed or not: it is printed when the run ends."""
    return pytestconfig.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.line(figure)
