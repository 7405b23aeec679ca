"""Requests driven through a core, with the time of every token."""

import statistics
import time
from collections.abc import Sequence
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

    def cancel(self) -> None:
        """Cancel what still runs, and see it end."""
        for request_id in self.timelines:
            self.core.cancel(request_id)
        self.run()

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


@dataclass(frozen=True)
class Rates:
    """What clients saw of some requests: tokens per second of all; seconds to a first token and between tokens."""

    tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float


def rates_of(lines: Sequence[Timeline], took: float) -> Rates:
    """The requests of these timelines, which took so many seconds together."""
    first = [line.ttft for line in lines]
    gaps = [gap for line in lines for gap in line.gaps]
    return Rates(
        tokens_per_second=sum(len(line.tokens) for line in lines) / took,
        ttft_p50=statistics.median(first),
        ttft_p99=percentile(first, 0.99),
        tpot_p50=percentile(gaps, 0.5),
        tpot_p99=percentile(gaps, 0.99),
    )


def serve(core: Core, requests: list[GenerationRequest]) -> Rates:
    """All requests at once."""
    drive, started = Drive(core), time.perf_counter()
    for request in requests:
        drive.add(request)
    drive.run()
    return rates_of(list(drive.timelines.values()), time.perf_counter() - started)
