"""SIGTERM and SIGINT end a download the way an error does: children ended, locks freed, partial files kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """The process was asked to end. No error: nothing between here and `run` may handle it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT raise Stopped in the main thread. As process 1 of a pod this is also
    what makes SIGTERM work at all: the kernel ignores signals there that have no handler."""
    former = {number: signal.signal(number, _raise) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not interrupt the cleaning up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Stopped(number)
