"""What the machine itself can do, measured in the same run as what is held against it."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from service.engine.kernels.stopwatch import seconds
from tests.bench.timing import read_bandwidth

READERS = 8
PIECE = 16 << 20
_own = threading.local()  # each reader's buffer


@dataclass(frozen=True)
class Limits:
    """Bytes per second of memory, FLOP per second of a dense product in the served type."""

    memory: float
    matmul: float


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Both; a tenth of a second each on a GPU."""
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        memory = read_bandwidth(device, 1 << 31 if on_gpu else 1 << 22)
        side = 8192 if on_gpu else 256
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        matmul = 2 * side**3 / seconds([lambda: a @ b], device)
    return Limits(memory, matmul)


def file_rate(model_dir: Path) -> float:
    """Bytes per second of reading the weights' files into nothing, with as many readers as the engine has.

    The first reading of a day asks the disk, the next ones the page cache, as long as that holds the files.
    """
    pieces = [
        (path, offset)
        for path in sorted(model_dir.glob("*.safetensors"))
        for offset in range(0, path.stat().st_size, PIECE)
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        count = sum(pool.map(_read, pieces))
    return count / (time.perf_counter() - started)


def _read(piece: tuple[Path, int]) -> int:
    path, offset = piece
    if not hasattr(_own, "buffer"):
        _own.buffer = bytearray(PIECE)
    with path.open("rb", buffering=0) as file:
        return os.preadv(file.fileno(), [_own.buffer], offset)
