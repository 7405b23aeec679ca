"""Seconds of device work, and the memory bandwidth to hold them against."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Work = Callable[[], object]

CACHE_BYTES = 256 * 1024**2
"""Inputs of one timing are at least this large together: several times the L2 cache of any GPU."""


def sets_needed(bytes_each: int, device: torch.device) -> int:
    """How many input sets to rotate among, so that none is found in the cache."""
    return max(2, min(64, -(-CACHE_BYTES // max(bytes_each, 1)))) if device.type == "cuda" else 1


def seconds(works: Sequence[Work], device: torch.device) -> float:
    """Median seconds of one of `works`, each run in turn; on a GPU inside a CUDA graph, where launches cost least."""
    for work in works:
        work()
    if device.type != "cuda":
        started = time.perf_counter()
        for work in works:
            work()
        return (time.perf_counter() - started) / len(works)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for work in works:
            work()
    return _median_replay(graph) / len(works)


def _median_replay(graph: torch.cuda.CUDAGraph, repeats: int = 20) -> float:
    for _ in range(3):
        graph.replay()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1e3


def read_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of the better of a large copy (read and written bytes) and a large sum (read bytes)."""
    data = torch.randn(size // 4, device=device)
    target = torch.empty_like(data)
    copied = 2 * data.nbytes / seconds([lambda: target.copy_(data)], device)
    return max(copied, data.nbytes / seconds([lambda: data.sum()], device))
