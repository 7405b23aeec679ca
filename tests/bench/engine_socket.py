"""What the socket between web worker and engine process costs: `python -m tests.bench.engine_socket`.

A fake engine says one token per stream and step; JSON lines tell the events per second that reach their readers and
the CPU time that each costs on either side, in microseconds. Below 10 ms a step nothing is left for a model.
"""

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path

from service.engine.base import GenerationRequest, Token
from service.engine.client import EngineClient
from tests.support.engines import a_request, fake_config, recorded_pid, scripted

RUNS = [(64, 10.0), (256, 10.0), (256, 0.0)]
"""Streams and milliseconds per step."""

TOKENS = 1000


async def count_tokens(engine: EngineClient, request: GenerationRequest) -> int:
    """Read one stream to its end."""
    return len([event async for event in engine.submit(request) if isinstance(event, Token)])


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(streams: int, step_ms: float) -> dict[str, float]:
    """Run some streams at once and say what each event cost."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = scripted(step_seconds=step_ms / 1000)
        engine = EngineClient(fake_config(max_running=streams, log_level="error"), run_dir, command=command)
        await engine.start()
        pid = recorded_pid(run_dir)
        ours, theirs, start = time.process_time(), cpu_seconds(pid), time.perf_counter()
        requests = [a_request(list(range(128)), new=TOKENS) for _ in range(streams)]
        events = sum(await asyncio.gather(*(count_tokens(engine, request) for request in requests)))
        seconds = time.perf_counter() - start
        ours, theirs = time.process_time() - ours, cpu_seconds(pid) - theirs
        await engine.stop()
    return {
        "streams": streams,
        "step_ms": step_ms,
        "events_per_second": round(events / seconds),
        "steps_per_second": round(TOKENS / seconds, 1),
        "web_cpu_us_per_event": round(ours / events * 1e6, 2),
        "web_cpu_share": round(ours / seconds, 3),
        "engine_cpu_us_per_event": round(theirs / events * 1e6, 2),
    }


if __name__ == "__main__":
    for streams, step_ms in RUNS:
        print(json.dumps(asyncio.run(measure(streams, step_ms))), flush=True)
