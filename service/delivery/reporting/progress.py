"""How far a long preparation is: a bar on a terminal, a line of the log now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 5.0

DOWNLOADING = "downloading"
VERIFYING = "verifying"
CONVERTING = "converting"


class Progress(Protocol):
    """Told whenever a phase got further."""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` units (bytes, tensors, …) of `phase` are there; equal when the phase is over.

        Both are 0 while the total is not known.
        """


class BarProgress:
    """One bar per phase."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=None)
        # No total yet: the bar only pulses. Of nothing, all would be there.
        self._bars.update(self._tasks[phase], completed=done, total=total or None)


Describe = Callable[[str, int, int], tuple[str, dict[str, object]]]
"""The line of the log for a phase, its done and its total; and the fields that go with it."""


def percent(phase: str, done: int, total: int) -> tuple[str, dict[str, object]]:
    """`converting: 40 %`."""
    return f"{phase}: {100 * done // total if total else 0} %", {}


class LogProgress:
    """A line when a phase begins, every few seconds, and when it is over."""

    def __init__(self, describe: Describe = percent, clock: Callable[[], float] = time.monotonic) -> None:
        self._describe = describe
        self._clock = clock
        self._logged = ("", 0)
        self._due = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        line, fields = self._describe(phase, done, total)
        begins = phase != self._logged[0]
        ends = done == total and self._logged != (phase, done)
        if begins or ends or self._clock() >= self._due:
            self._logged, self._due = (phase, done), self._clock() + LOG_EVERY_SECONDS
            log.info("%s", line, extra={"fields": fields})


@contextmanager
def shown(columns: Sequence[ProgressColumn], describe: Describe, stream: TextIO | None) -> Iterator[Progress]:
    """What suits `stream` (None: standard error): bars of these columns on a terminal, log lines elsewhere."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield LogProgress(describe)
        return
    with RichProgress(TextColumn("{task.description}"), BarColumn(), *columns, console=Console(file=stream)) as bars:
        yield BarProgress(bars)


def show_progress(stream: TextIO | None = None) -> AbstractContextManager[Progress]:
    """How far phases of whatever units are."""
    return shown((TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn()), percent, stream)
