"""Work timed for as long as a GPU serves, which is longer than it can go at its best; the memory bandwidth by that."""

import math

import torch

from service.engine.kernels.stopwatch import Work, seconds

SUSTAINED = 0.5
"""Seconds of work that are timed on a GPU, after as many that are not: within some tenths of a second a GPU that draws
more power than it may lowers its clocks."""


def sustained_seconds(work: Work, device: torch.device) -> float:
    """Mean seconds of `work`, done over and over as by a GPU that serves. On a CPU, where nothing is judged, once."""
    once = seconds([work], device)
    if device.type != "cuda":
        return once
    count = math.ceil(SUSTAINED / once)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(count):
        work()
    start.record()
    for _ in range(count):
        work()
    stop.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(stop)) / 1e3 / count


def read_bandwidth(device: torch.device, size: int) -> float:
    """Sustained bytes per second: the better of a large copy (read and written bytes) and a large sum (read bytes)."""
    data = torch.randn(size // 4, device=device)
    target = torch.empty_like(data)
    copied = 2 * data.nbytes / sustained_seconds(lambda: target.copy_(data), device)
    return max(copied, data.nbytes / sustained_seconds(lambda: data.sum(), device))
