"""How far a long preparation is: a bar on a terminal, a line of the log now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 5.0


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


class LogProgress:
    """A line when a phase begins, every few seconds, and when it is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged = ("", 0)
        self._due = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        begins = phase != self._logged[0]
        ends = done == total and self._logged != (phase, done)
        if begins or ends or self._clock() >= self._due:
            self._logged, self._due = (phase, done), self._clock() + LOG_EVERY_SECONDS
            log.info("%s: %d %%", phase, 100 * done // total if total else 0)


@contextmanager
def show_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """What suits `stream` (default: standard error): bars on a terminal, log lines elsewhere."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield LogProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=Console(file=stream)) as bars:
        yield BarProgress(bars)
