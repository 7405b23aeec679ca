"""Seconds of device work: what decides between two ways to compute the same, and what the benchmarks print."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Work = Callable[[], object]
Stopwatch = Callable[[Sequence[Work], torch.device], float]
"""Seconds of one of several works that are each run in turn."""

CACHE_BYTES = 256 * 1024**2
"""Inputs of one timing are at least this large together: several times the L2 cache of any GPU."""
REPLAYS = 20
LEAST_REPLAYS = 3
REPLAY_SECONDS = 0.05
"""Works are run REPLAYS times, on a slow GPU as often as this has time for."""


def sets_needed(bytes_each: int, device: torch.device) -> int:
    """How many input sets to rotate among, so that none is found in the cache."""
    return max(1, min(64, -(-CACHE_BYTES // max(bytes_each, 1)))) if device.type == "cuda" else 1


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
    return _median_replay(_captured(works)) / len(works)


def _captured(works: Sequence[Work]) -> torch.cuda.CUDAGraph:
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on meanwhile
            for work in works:
                work()
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails at its end stays on its own
    return graph


def _median_replay(graph: torch.cuda.CUDAGraph) -> float:
    graph.replay()
    count = int(REPLAY_SECONDS / max(min(_replays(graph, 2)), 1e-9))
    return statistics.median(_replays(graph, max(LEAST_REPLAYS, min(REPLAYS, count))))


def _replays(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
    """Seconds of each of so many."""
    events = [(_event(), _event()) for _ in range(count)]
    for start, stop in events:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    return [float(start.elapsed_time(stop)) / 1e3 for start, stop in events]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
