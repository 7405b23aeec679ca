"""The engine's run directory: private, with `engine.sock` and `engine.pid` in it while an engine lives.

A lock on the directory itself makes sure that two web workers never start two engines.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigurationError

LONGEST_SOCKET_PATH = 100
"""Bytes. sockaddr_un holds 108 on Linux and 104 on macOS."""


def prepare(run_dir: Path) -> None:
    """Make the run directory; raises ConfigurationError if others may enter it or its name is too long."""
    if len(os.fsencode(socket_path(run_dir))) > LONGEST_SOCKET_PATH:
        raise ConfigurationError(f"the run directory's name is too long for a socket: {run_dir}", field="run_dir")
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = run_dir.stat()
    except OSError as error:
        raise ConfigurationError(f"the run directory cannot be used: {error}", field="run_dir") from error
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise ConfigurationError(
            f"the run directory {run_dir} must belong to this user and be closed to others (chmod 700)", field="run_dir"
        )


@contextlib.contextmanager
def locked(run_dir: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the run directory's lock; raises BlockingIOError if someone else does and `wait` is False."""
    directory = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(directory)


def forget(run_dir: Path, pid: int, *, wait: bool = True) -> bool:
    """Remove the traces of the engine process `pid`, which has ended or is about to; those of a successor stay.

    False if `wait` is False and someone holds the lock: someone is about to connect.
    """
    try:
        with locked(run_dir, wait=wait):
            if recorded_pid(run_dir) == pid:
                remove_traces(run_dir)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass  # the whole directory is gone
    return True


def remove_traces(run_dir: Path) -> None:
    """Remove what an engine left; the lock must be held, and no engine listen."""
    socket_path(run_dir).unlink(missing_ok=True)
    pid_path(run_dir).unlink(missing_ok=True)


def recorded_pid(run_dir: Path) -> int | None:
    """The pid of the engine that was started last."""
    try:
        return int(pid_path(run_dir).read_text())
    except (FileNotFoundError, ValueError):
        return None


def socket_path(run_dir: Path) -> Path:
    """Where the engine listens."""
    return run_dir / "engine.sock"


def pid_path(run_dir: Path) -> Path:
    """Where the engine's pid is kept, for the day it does not answer."""
    return run_dir / "engine.pid"
