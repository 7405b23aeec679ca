"""How far a transfer is: a bar on a terminal; in a pod a line every five seconds with bytes, rate and time to go."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from service.delivery.reporting.progress import Progress, shown

WINDOW_SECONDS = 30.0


class Rate:
    """Units per second over the last half minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, done: int) -> float:
        """The rate, now that `done` units are there; 0 until there is something to compare with."""
        now = self._clock()
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        start, first = self._samples[0]
        return (done - first) / (now - start) if now > start else 0.0


class TransferLine:
    """What the log says of a transfer: bytes, rate and time to go. It must hear of every bit of progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase, self._rate = "", Rate(clock)

    def __call__(self, phase: str, done: int, total: int) -> tuple[str, dict[str, object]]:
        if phase != self._phase:
            self._phase, self._rate = phase, Rate(self._clock)
        rate = self._rate.update(done)
        fields = {"phase": phase, "bytes": done, "total_bytes": total, "bytes_per_second": round(rate)}
        return describe(phase, done, total, rate), fields


def describe(phase: str, done: int, total: int, rate: float) -> str:
    """`downloading: 4.40 of 17.62 GB (25 %), 98.5 MB/s, 2:14 to go`."""
    share = 100 * done // total if total else 100
    divisor, unit = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    line = f"{phase}: {done / divisor:.2f} of {total / divisor:.2f} {unit} ({share} %), {rate / 1e6:.1f} MB/s"
    if rate <= 0 or done >= total:
        return line
    minutes, seconds = divmod(round((total - done) / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{line}, {f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d} to go"


@contextmanager
def show_transfer(metrics_file: Path | None, stream: TextIO | None = None) -> Iterator[Progress]:
    """How far a transfer is, on `stream` (None: standard error), and in the metrics file if one is wanted."""
    with shown((DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()), TransferLine(), stream) as progress:
        if metrics_file is None:
            yield progress
            return
        from service.delivery.reporting.metrics import TransferMetrics

        metrics = TransferMetrics(metrics_file)

        def both(phase: str, done: int, total: int) -> None:
            progress(phase, done, total)
            metrics(phase, done, total)

        try:
            yield both
        finally:
            metrics.flush()
