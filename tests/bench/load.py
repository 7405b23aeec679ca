"""Requests driven through a core, with the time of every token."""

import statistics
import time
from dataclasses import dataclass, field

from service.engine.base import Core, Finish, FinishReason, GenerationRequest, SamplingParams, Token

FULL_SAMPLING = SamplingParams(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.005, seed=7)


@dataclass
class Timeline:
    """When a request was handed in, and when its tokens came; seconds of `time.perf_counter()`."""

    start: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.times[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


class Drive:
    """Steps a core and keeps a timeline per request."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.timelines: dict[str, Timeline] = {}
        self.steps: list[tuple[float, int]] = []  # seconds of a step, tokens it gave

    def add(self, request: GenerationRequest) -> Timeline:
        """Hand a request in."""
        self.timelines[request.id] = timeline = Timeline(time.perf_counter())
        self._sort(self.core.add(request))
        return timeline

    def step(self) -> None:
        """One step."""
        started = time.perf_counter()
        count = self._sort(self.core.step())
        self.steps.append((time.perf_counter() - started, count))

    def run(self) -> None:
        """Step until nothing is left to do."""
        while not self.core.idle:
            self.step()

    def _sort(self, events: list[Token | Finish]) -> int:
        now, count = time.perf_counter(), 0
        for event in events:
            if isinstance(event, Token):
                count += 1
                self.timelines[event.id].tokens.append(event.token)
                self.timelines[event.id].times.append(now)
            elif event.reason not in (FinishReason.LENGTH, FinishReason.STOP, FinishReason.CANCELLED):
                raise RuntimeError(f"{event.id} ended with {event.reason}: {event.message}")
        return count


class Prompts:
    """Requests with prompts of their own; no two begin alike."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._count = 0

    def tokens(self, length: int) -> list[int]:
        """Arbitrary ids above the special ones."""
        self._count += 1
        return [(self._count * 7919 + i * 104_729) % (self._vocab_size - 16) + 8 for i in range(length)]

    def request(
        self, prompt: int | list[int], new_tokens: int, sampling: SamplingParams = FULL_SAMPLING
    ) -> GenerationRequest:
        """A request that ends by its length alone."""
        ids = prompt if isinstance(prompt, list) else self.tokens(prompt)
        return GenerationRequest(
            id=f"bench-{self._count}-{time.perf_counter_ns()}",
            prompt_ids=ids,
            max_new_tokens=new_tokens,
            stop_ids=[],
            deadline=time.monotonic() + 3600,
            sampling=sampling,
        )

    def spread(self, count: int, between: tuple[int, int], new_tokens: int) -> list[GenerationRequest]:
        """`count` requests with prompt lengths evenly between the two."""
        low, high = between
        lengths = [low + (high - low) * i // max(count - 1, 1) for i in range(count)]
        return [self.request(length, new_tokens) for length in lengths]


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed; 0 for none."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def serve(core: Core, requests: list[GenerationRequest]) -> dict[str, float]:
    """All requests at once: tokens per second, TTFT and the time between tokens, in milliseconds."""
    drive, started = Drive(core), time.perf_counter()
    for request in requests:
        drive.add(request)
    drive.run()
    took = time.perf_counter() - started
    lines = list(drive.timelines.values())
    gaps = [gap for line in lines for gap in line.gaps]
    return {
        "tokens_per_second": sum(len(line.tokens) for line in lines) / took,
        "ttft_ms_p50": statistics.median(line.ttft for line in lines) * 1e3,
        "ttft_ms_p99": percentile([line.ttft for line in lines], 0.99) * 1e3,
        "tpot_ms_p50": percentile(gaps, 0.5) * 1e3,
        "tpot_ms_p99": percentile(gaps, 0.99) * 1e3,
    }
