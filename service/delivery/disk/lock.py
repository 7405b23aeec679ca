"""One writer per volume: a `flock` on a file of the volume itself, so that pods on other nodes respect it too.

The kernel (or the NFS server) frees the lock of a process that dies, however it dies, so it is never stale. The
fetching child inherits the descriptor: the volume stays locked until the last process that can write is gone.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.reporting.progress import Progress
from service.delivery.symptoms import failure_of

log = logging.getLogger(__name__)

NAME = "lock"
POLL_SECONDS = 0.25
NOTICE_SECONDS = 5.0
_UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


@contextmanager
def volume_lock(
    scratch: Path, patience: float, progress: Callable[[], int], clock: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """Hold the volume's lock; yields its descriptor.

    Waits while the holder gets further: `progress` gives the bytes on the volume, and what adds none (verifying) shows
    by `signs_of_life`. Raises DeliveryFailed once neither has changed for `patience` seconds.
    """
    path = scratch / NAME
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise failure_of(error, f"opening {path}") from error
    try:
        _acquire(descriptor, path, patience, progress, clock)
        _sign(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def signs_of_life(descriptor: int, progress: Progress) -> Progress:
    """`progress` that shows those who wait for the lock of `descriptor`, too, whenever its holder gets further."""
    last = ("", -1)

    def told(phase: str, done: int, total: int) -> None:
        nonlocal last
        if (phase, done) != last:
            last = (phase, done)
            _touch(descriptor)
        progress(phase, done, total)

    return told


def _touch(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.utime(descriptor)


def _acquire(
    descriptor: int, path: Path, patience: float, progress: Callable[[], int], clock: Callable[[], float]
) -> None:
    seen, since, notice = (progress(), _touched(descriptor)), clock(), clock()
    while not _try(descriptor, path):
        now, there = clock(), (progress(), _touched(descriptor))
        if there != seen:
            seen, since = there, now
        if now - since >= patience:
            raise DeliveryFailed(Cause.LOCKED, f"{_holder(path)} holds {path} and got no further for {patience:.0f} s")
        if now >= notice:
            log.info("waiting for %s, which downloads to this volume: %s bytes there", _holder(path), f"{there[0]:,}")
            notice = now + NOTICE_SECONDS
        time.sleep(POLL_SECONDS)


def _touched(descriptor: int) -> int:
    return os.fstat(descriptor).st_mtime_ns


def _try(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise failure_of(error, f"locking {path}") from error
        log.warning("%s cannot be locked on this file system (%s): see that no two pods download to it", path, error)
    return True


def _sign(descriptor: int) -> None:
    """Leave who holds the lock; a full disk must not prevent the download that may free it."""
    name = f"{socket.gethostname()} (process {os.getpid()})\n".encode()
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, name, 0)
    except OSError as error:
        log.debug("the lock's holder could not be noted: %s", error)


def _holder(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()[:200] or "another process"
    except OSError:
        return "another process"
