"""Hashes of files in parallel, in constant memory, and stopped within a block when the process is told to go."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 1 << 20
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Digests:
    """SHA-256 of the content, and the id git gives it as a blob (SHA-1 with git's header)."""

    sha256: str
    git_oid: str | None = None


class Cancelled(Exception):
    """Hashing was stopped before its end."""


def hash_files(
    paths: Mapping[Path, bool], on_bytes: Callable[[int], None] | None = None, workers: int | None = None
) -> dict[Path, Digests | OSError]:
    """The hashes of every path (the value says whether git's is wanted, too), or the error reading it met.

    `on_bytes` is told, on the caller's thread, how many bytes have been read in all.
    """
    stop, read = threading.Event(), _Counter()
    pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="hash")
    futures = {pool.submit(_hash_file, path, git, stop, read): path for path, git in paths.items()}
    try:
        _watch(futures, lambda: on_bytes(read.total) if on_bytes else None)
        return {path: _outcome(future) for future, path in futures.items()}
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


class _Counter:
    """Bytes read by all threads."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.total += count


def _watch(futures: Iterable[Future[Digests]], report: Callable[[], None]) -> None:
    pending = set(futures)
    while pending:
        _, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
        report()


def _outcome(future: Future[Digests]) -> Digests | OSError:
    try:
        return future.result()
    except OSError as error:
        return error


def _hash_file(path: Path, git: bool, stop: threading.Event, read: _Counter) -> Digests:
    sha256, block = hashlib.sha256(), memoryview(bytearray(BLOCK_BYTES))
    sha1 = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False) if git else None
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            if stop.is_set():
                raise Cancelled
            sha256.update(block[:count])
            if sha1:
                sha1.update(block[:count])
            read.add(count)
    return Digests(sha256.hexdigest(), sha1.hexdigest() if sha1 else None)
