"""Reads byte ranges of files into device memory through small pinned buffers, reading and copying at the same time.

A buffer is filled by one read call, without a copy in between, and leaves for the GPU while the next one is filled: a
copy from pageable memory (a mapped file) would be staged by the driver at a fraction of the bus's speed.
"""

import os
import threading
from contextlib import nullcontext
from pathlib import Path

import torch

from service.engine.checkpoint.tensor_file import Extent
from service.engine.quantization import Int8Matrix, Matrix

BUFFER_BYTES = 8 << 20
"""Large enough that a read call and a copy cost nothing to start; eight readers with two each pin 128 MiB, which the
driver takes a twentieth of a second for."""


class Lane:
    """One reader's two buffers and its stream; not for use by several threads. On a CPU every copy is done at once."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        on_gpu = device.type == "cuda"
        self._device = device
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def read(self, file: int, path: Path, extent: Extent, place: Matrix) -> int:
        """Copy the tensor at `extent` of an open file to `place`, cast to its type, or rounded where it is quantized.
        Returns the bytes read.

        Raises OSError when the file ends too early, or has a row that no buffer holds.
        """
        # Numbers are rounded by the largest of their row; all others go one by one.
        lines = place if isinstance(place, Int8Matrix) else place.view(-1, 1)
        width = lines.shape[1] * extent.dtype.itemsize
        at_once = self._buffers[0].shape[0] // width
        if not at_once:
            raise OSError(f"{path}: a row of {width} bytes is longer than a buffer of {self._buffers[0].shape[0]}")
        offset = extent.offset
        for part in lines.split(at_once):
            staged = self._fill(file, path, offset, part.shape[0] * width).view(extent.dtype)
            self._copy(staged.view(part.shape), part)
            offset += part.shape[0] * width
        return extent.size

    def finish(self) -> None:
        """Wait until everything has arrived."""
        if self._stream is not None:
            self._stream.synchronize()

    def _fill(self, file: int, path: Path, offset: int, count: int) -> torch.Tensor:
        """The next buffer, once its last copy is done, with `count` bytes of the file."""
        self._turn = 1 - self._turn
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        buffer = self._buffers[self._turn][:count]
        view, done = memoryview(buffer.numpy()), 0  # type: ignore[arg-type]
        while done < count:
            got = os.preadv(file, [view[done:]], offset + done)
            if not got:
                raise OSError(f"{path} ends at byte {offset + done}")
            done += got
        return buffer

    def _copy(self, staged: torch.Tensor, place: Matrix) -> None:
        with torch.cuda.stream(self._stream) if self._stream is not None else nullcontext():
            # A cast, and rounding, is left to the device: the host would need a second copy for it.
            place.copy_(staged.to(place.device, non_blocking=True), non_blocking=True)
        if self._stream is not None:
            self._copied[self._turn] = self._stream.record_event()


class Lanes:
    """A lane for each thread that asks, kept for all it reads: pinning memory costs as much as reading into it."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[Lane] = []

    def of(self, device: torch.device) -> Lane:
        """The calling thread's lane to `device`, always the same one."""
        if not hasattr(self._own, "lane"):
            self._own.lane = Lane(device)
            self._all.append(self._own.lane)
        lane: Lane = self._own.lane
        return lane

    def finish(self) -> None:
        """Wait until everything that was read has arrived."""
        for lane in self._all:
            lane.finish()
