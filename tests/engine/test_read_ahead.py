"""Files that are read ahead are in the page cache, as far as was asked for and as long as there is time for it."""

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from service.engine.checkpoint import read_ahead
from service.engine.checkpoint.read_ahead import PIECE, reading_ahead

SIZE = 64 * PIECE
SECONDS = 30
"""Until what was asked for is there, at most."""


@pytest.fixture
def cold(tmp_path: Path) -> list[Path]:
    """Two files that are on the disk alone."""
    files = [tmp_path / name for name in ("a", "b")]
    for path in files:
        with path.open("wb") as file:
            file.write(bytes(SIZE))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if is_cached(files[0], 0):
        pytest.skip("this file system keeps its files in memory")
    return files


def is_cached(path: Path, offset: int) -> bool:
    """By mincore(2): a read that may not wait has Linux read ahead, too."""
    libc, core = ctypes.CDLL(None, use_errno=True), ctypes.c_ubyte()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        page = offset // mmap.PAGESIZE * mmap.PAGESIZE
        here = ctypes.c_char.from_buffer(mapped, page)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(here)), ctypes.c_size_t(1), ctypes.byref(core))
        del here  # what is pointed into cannot be unmapped
    assert not failed, os.strerror(ctypes.get_errno())
    return bool(core.value & 1)


def wait_for(path: Path, offset: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_cached(path, offset):
        assert time.monotonic() < deadline, f"{path.name} at {offset} is still on the disk alone"
        time.sleep(0.01)


def test_files_come_into_memory_one_after_the_other(cold: list[Path]) -> None:
    with reading_ahead(cold, 10 * SIZE):
        for path in cold:  # asked for is not there yet, and what is there may have to go again
            wait_for(path, SIZE // 2)
            wait_for(path, SIZE - 1)


def test_no_more_than_there_is_room_for_is_read(cold: list[Path]) -> None:
    with reading_ahead(cold, SIZE + SIZE // 4):
        wait_for(cold[1], SIZE // 4 - 1)
        time.sleep(0.2)
    # Beyond it lies the window that the kernel itself reads ahead.
    assert not is_cached(cold[1], SIZE - 1)


def test_what_cannot_be_read_is_left_to_whoever_needs_it(cold: list[Path], tmp_path: Path) -> None:
    with reading_ahead([tmp_path / "missing", tmp_path, cold[0]], SIZE):
        wait_for(cold[0], SIZE - 1)


def test_it_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads in earnest then must not find the disk busy with what it will ask for later."""
    (tmp_path / "large").write_bytes(bytes(SIZE))
    asked, first = 0, threading.Event()

    def advise(*_: int) -> None:
        nonlocal asked
        asked += 1
        first.set()
        time.sleep(0.01)

    monkeypatch.setattr(read_ahead.os, "posix_fadvise", advise)
    with reading_ahead([tmp_path / "large"] * 1000, 1000 * SIZE):
        assert first.wait(SECONDS)
    assert asked < 64
    assert not [thread for thread in threading.enumerate() if thread.name == "read-ahead"]
