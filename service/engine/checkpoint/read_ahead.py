"""Has files read into the page cache while something else takes its time: the weights while kernels compile."""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

PIECE = 128 << 10
"""Bytes asked for at once. Linux reads no more than a device's readahead window ahead for a single advice
(mm/readahead.c, force_page_cache_ra); this is its default."""


@contextmanager
def reading_ahead(files: Sequence[Path], most: int) -> Iterator[None]:
    """While the block runs, the first `most` bytes of the files, one after the other, come into the page cache.

    Nothing is copied, and what is there already costs next to nothing. A file that cannot be read is left to whoever
    needs it.
    """
    is_over = threading.Event()
    thread = threading.Thread(target=_read_ahead, args=(files, most, is_over), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _read_ahead(files: Sequence[Path], most: int, is_over: threading.Event) -> None:
    for path in files:
        try:
            most -= _advise(path, most, is_over)
        except OSError as error:
            logger.info("%s is not read ahead: %s", path, error)
        if most <= 0 or is_over.is_set():
            return


def _advise(path: Path, most: int, is_over: threading.Event) -> int:
    """Ask for the beginning of a file, in order; the bytes asked for."""
    with path.open("rb") as file:
        length = min(most, os.fstat(file.fileno()).st_size)
        for offset in range(0, length, PIECE):
            if is_over.is_set():
                return offset
            os.posix_fadvise(file.fileno(), offset, min(PIECE, length - offset), os.POSIX_FADV_WILLNEED)
    return length
