"""What reading ahead spares a start: files read from the disk after some seconds of other work, and the same with the
files read ahead during that work.

    python -m tests.bench.read_ahead --dir /models [--gib 2] [--work 3]

Writes one file of so many GiB there, and removes it. Prints one line of JSON: seconds of reading it out of the page
cache (the least there can be), from the disk, and read ahead during `work` seconds; `spared` is the share of what the
disk costs that reading ahead takes away.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from service.engine.checkpoint.read_ahead import reading_ahead

PIECE = 16 << 20


def write(path: Path, size: int) -> None:
    """A file that no file system makes smaller."""
    noise = os.urandom(PIECE)
    with path.open("wb") as file:
        for _ in range(size // PIECE):
            file.write(noise)
        os.fsync(file.fileno())


def evict(path: Path) -> None:
    """Leave it on the disk alone."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> float:
    """Seconds of reading it whole."""
    started, buffer = time.perf_counter(), bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def measure(path: Path, work: float) -> dict[str, float]:
    """All three on one file."""
    evict(path)
    time.sleep(work)
    cold, warm = read(path), read(path)
    evict(path)
    with reading_ahead([path], path.stat().st_size):
        time.sleep(work)
    ahead = read(path)
    return {"warm": warm, "cold": cold, "read_ahead": ahead, "spared": (cold - ahead) / max(cold - warm, 1e-9)}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.read_ahead", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True, help="where the weights would lie")
    parser.add_argument("--gib", type=float, default=2, help="size of the file")
    parser.add_argument("--work", type=float, default=3, help="seconds of other work, which here is none")
    given = parser.parse_args(arguments)
    with tempfile.NamedTemporaryFile(dir=given.dir) as file:
        path = Path(file.name)
        write(path, int(given.gib * (1 << 30)))
        found = measure(path, given.work)
    print(json.dumps({"gib": given.gib, "work": given.work} | {name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
