"""Progress is a bar where somebody watches and a line now and then where nobody does."""

import io
import logging

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from service.delivery.reporting.progress import LOG_EVERY_SECONDS, BarProgress, LogProgress, show_progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_per_phase() -> None:
    terminal = Terminal()
    with show_progress(terminal) as progress:
        assert isinstance(progress, BarProgress)
        progress("downloading", 0, 100)
        progress("downloading", 100, 100)
        progress("converting", 1, 4)
    shown = terminal.getvalue()
    assert "downloading" in shown
    assert "100 %" in shown
    assert "25 %" in shown


def test_a_bar_without_a_total_is_not_at_its_end() -> None:
    with Bars(console=Console(file=Terminal())) as bars:
        progress = BarProgress(bars)
        progress("downloading", 0, 0)
        progress("downloading", 0, 0)
        (task,) = bars.tasks
        assert not task.finished
        progress("downloading", 40, 40)
        assert task.finished


def test_a_pipe_gets_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    with caplog.at_level(logging.INFO), show_progress(stream) as progress:
        progress("downloading", 50, 100)
    assert caplog.messages == ["downloading: 50 %"]
    assert stream.getvalue() == ""


def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    progress = LogProgress(clock=lambda: now)
    with caplog.at_level(logging.INFO):
        for done in range(101):
            progress("downloading", done, 100)
            now += LOG_EVERY_SECONDS / 64
        progress("downloading", 100, 100)
        progress("converting", 1, 1000)
        progress("converting", 2, 1000)
    assert caplog.messages == ["downloading: 0 %", "downloading: 64 %", "downloading: 100 %", "converting: 0 %"]


def test_a_size_nobody_knows_is_no_division_by_zero(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        LogProgress()("downloading", 0, 0)
    assert caplog.messages == ["downloading: 0 %"]
