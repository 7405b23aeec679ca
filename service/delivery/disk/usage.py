"""Who serves a model holds a shared lock in its directory, so that nobody removes it to make room for another.

A lock of its own, not the download's: a directory that is in use may be mended, with other files under the same names.
The kernel frees the lock of a process that ends, however it ends.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.delivery.disk.volume import SCRATCH

log = logging.getLogger(__name__)

NAME = "in-use"


class InUseError(OSError):
    """Somebody serves this model, or nobody can tell."""


def offer(scratch: Path) -> None:
    """Make the file to be locked: who serves may have nothing but a read-only mount."""
    (scratch / NAME).touch()


def hold(model_dir: Path) -> int | None:
    """Hold the model for as long as this process lives, or until the descriptor that is returned is closed; None where
    that cannot be. A directory that no download made is nobody's to remove."""
    try:
        descriptor = os.open(model_dir / SCRATCH / NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        log.warning("%s cannot be held while it is served: %s", model_dir, error)
        os.close(descriptor)
        return None
    return descriptor


@contextmanager
def unused(model_dir: Path) -> Iterator[None]:
    """For as long as the block lasts nobody can begin to serve the model. Raises InUseError if somebody does, OSError
    where locks are not to be had."""
    descriptor = os.open(model_dir / SCRATCH / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise InUseError("it is being served") from None
    finally:
        os.close(descriptor)
