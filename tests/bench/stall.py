"""What a long prompt costs the streams beside it: the time between their tokens before and while it is computed."""

from dataclasses import dataclass

from service.engine.base import Core
from tests.bench.load import Drive, Prompts, Timeline
from tests.bench.scale import Scale

SETTLING = 10
"""Tokens of every stream that are left out: the first ones share their steps with the other streams' prompts."""


@dataclass(frozen=True)
class Stall:
    """Seconds between the tokens of all streams, over `Scale.stall_steps` steps or more; the first prompt's TTFT, and
    the longest of the short ones behind it."""

    before: list[float]
    during: list[float]
    ttft: float
    ttft_behind: float


def measure_stall(core: Core, prompts: Prompts, scale: Scale, max_positions: int, behind: int = 0) -> Stall:
    """Streams run alone, then beside one long prompt after another until both took as many steps: a percentile of fewer
    would be a maximum, and one of unequal numbers no comparison. `behind`: short prompts that wait behind each."""
    drive = Drive(core)
    new = min(4096, max_positions // 2)
    streams = [drive.add(prompts.request(scale.prompts[0], new)) for _ in range(scale.stall_streams)]
    _step(drive, streams, SETTLING)
    settled = _counts(streams)
    _step(drive, streams, scale.stall_steps)
    joined = _counts(streams)
    ttft = ttft_behind = 0.0
    while min(_counts(streams)) < min(joined) + scale.stall_steps:
        long = drive.add(prompts.request(scale.stall_prompt, 1))
        short = [drive.add(prompts.request(scale.prompts[0], 1)) for _ in range(behind)]
        while not all(line.times for line in (long, *short)):
            drive.step()
        ttft = ttft or long.ttft
        ttft_behind = ttft_behind or max((line.ttft for line in short), default=0.0)
    before = [gap for line, a, b in zip(streams, settled, joined, strict=True) for gap in line.gaps[a - 1 : b - 1]]
    during = [gap for line, at in zip(streams, joined, strict=True) for gap in line.gaps[at - 1 :]]
    drive.cancel()
    return Stall(before, during, ttft, ttft_behind)


def _counts(streams: list[Timeline]) -> list[int]:
    return [len(line.times) for line in streams]


def _step(drive: Drive, streams: list[Timeline], tokens: int) -> None:
    """Step until every stream has so many tokens more."""
    goals = [count + tokens for count in _counts(streams)]
    while any(count < goal for count, goal in zip(_counts(streams), goals, strict=True)):
        drive.step()
