"""What the machine itself can do, measured in the same run as what is held against it."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from service.engine.checkpoint.staging import BUFFER_BYTES
from service.engine.checkpoint.tensors import READERS
from tests.bench.timing import read_bandwidth, sustained_seconds


@dataclass(frozen=True)
class Limits:
    """Bytes per second of memory, FLOP per second of a dense product in the served type."""

    memory: float
    matmul: float


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Both as a GPU sustains them; a second each.

    Sustained, since steps and prompts follow one another for minutes: what a rested H100 computes in its first 30 ms,
    before it has to save power, no engine reaches.
    """
    on_gpu = device.type == "cuda"
    with torch.inference_mode():
        memory = read_bandwidth(device, 1 << 31 if on_gpu else 1 << 22)
        side = 8192 if on_gpu else 256
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        matmul = 2 * side**3 / sustained_seconds(lambda: a @ b, device)
    return Limits(memory, matmul)


def file_rate(model_dir: Path) -> float:
    """Bytes per second of reading the weights' files into nothing, with the readers and buffers that the engine has.

    The first reading of a day asks the disk, the next ones the page cache, as long as that holds the files.
    """
    pieces = [
        (path, offset)
        for path in sorted(model_dir.glob("*.safetensors"))
        for offset in range(0, path.stat().st_size, BUFFER_BYTES)
    ]
    buffers = _Buffers()
    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as pool:
        count = sum(pool.map(buffers.read, pieces))
    return count / (time.perf_counter() - started)


class _Buffers:
    """Two for each reader, filled in turn as those of a `staging.Lane`: a single one would stay in the CPU's cache."""

    def __init__(self) -> None:
        self._free = [[bytearray(BUFFER_BYTES) for _ in range(2)] for _ in range(READERS)]
        self._own = threading.local()

    def read(self, piece: tuple[Path, int]) -> int:
        """Bytes read of a file from an offset on."""
        path, offset = piece
        if not hasattr(self._own, "pair"):
            self._own.pair = self._free.pop()
        self._own.pair.reverse()
        with path.open("rb", buffering=0) as file:
            return os.preadv(file.fileno(), [self._own.pair[0]], offset)
