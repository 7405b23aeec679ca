"""Decode steps as CUDA graphs: one per batch bucket, recorded at start, in one memory pool.

What is recorded and when, which bucket serves a batch, and what happens when a recording fails is decided here, without
CUDA; a `Recorder` does the recording (`recorder.CudaRecorder` on a GPU).
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from service.engine.sampling import Method
from service.engine.steps.slots import Slots
from service.errors import first_line

logger = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes with a graph. A batch is padded to the next one, by less than a half from 16 on: a padding row costs far
less than its share, since a decode is bound by reading the weights."""
RECORDING_SECONDS = 15.0
"""No further graph is begun after this long: a start-up is bounded, and larger buckets serve for those left out."""
REASON_LENGTH = 160

Decode = Callable[[torch.Tensor], torch.Tensor]
"""From slots [B] to their next tokens [B], all on the device; the slots advance."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Work that can be done again: `replay` queues it, its result then lies in `output`."""

    replay: Callable[[], None]
    output: torch.Tensor


class Recorder(Protocol):
    """Records device work. Outputs may share memory: one is valid until the next replay of any recording."""

    def record(self, body: Callable[[], torch.Tensor]) -> Recording:
        """Rehearse `body` and record it. Raises whatever the device makes of it."""
        ...

    def rehearse(self, body: Callable[[], None]) -> None:
        """Run `body`, so that nothing has to be made ready when it is captured."""
        ...

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record `body` alone, which leaves its results in tensors of the caller's; its replay."""
        ...

    def require_usable(self) -> None:
        """Raise EngineFailed when a failed recording left the device beyond use."""
        ...


def buckets_for(max_running: int) -> tuple[int, ...]:
    """The buckets that batches of up to `max_running` rows need; the last one holds them all."""
    return (*(bucket for bucket in BUCKETS if bucket < max_running), max_running)


def recording_order(buckets: Sequence[int]) -> list[int]:
    """The largest first, whose memory serves all others; then from the smallest on, where launches cost most."""
    ascending = sorted(buckets)
    return [ascending[-1], *ascending[:-1]]


Kind = TypeVar("Kind")


def record_each(
    kinds: Sequence[Kind],
    record: Callable[[Kind], None],
    recorder: Recorder,
    deadline: float,
    clock: Callable[[], float],
) -> tuple[dict[Kind, str], list[Kind]]:
    """Record one after the other, none after `deadline`; which failed, with the reason, and which were left out."""
    pending, failed = list(kinds), {}
    while pending and clock() < deadline:
        kind = pending.pop(0)
        try:
            record(kind)
        except Exception as error:  # drivers, compilers and libraries raise what they like
            logger.warning("serving without a recording of %s", kind, exc_info=True)
            failed[kind] = first_line(error)[:REASON_LENGTH]
            recorder.require_usable()
    if pending:
        logger.warning("no time is left to record %s", pending)
    return failed, pending


class DecodeGraphs:
    """Recorded decode steps over `slots`. Padding rows decode the spare slot, whose KV goes to the scratch block.

    `methods` are those a recording can sample by: all, when the sampler reads each row's method on the device.
    """

    def __init__(self, slots: Slots, methods: set[Method]) -> None:
        self.degraded: list[str] = []
        self.seconds = 0.0
        self._slots = slots
        self._methods = methods
        self._recordings: dict[int, Recording] = {}
        self._input = torch.full_like(slots.tokens, slots.spare)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that were recorded, ascending."""
        return tuple(sorted(self._recordings))

    def record(
        self,
        recorder: Recorder,
        decode: Decode,
        buckets: Sequence[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record `decode` for each bucket. A failure costs that bucket its graph and is named in `degraded`."""
        started = clock()

        def record_one(bucket: int) -> None:
            inputs = self._input[:bucket].fill_(self._slots.spare)
            self._recordings[bucket] = recorder.record(lambda: decode(inputs))

        failed, left = record_each(recording_order(buckets), record_one, recorder, started + RECORDING_SECONDS, clock)
        self.degraded += [f"cuda_graphs: batch size {bucket}: {reason}" for bucket, reason in failed.items()]
        if left:
            self.degraded.append(
                f"cuda_graphs: {RECORDING_SECONDS:.0f} s were over before the batch sizes {sorted(left)}"
            )
        self.seconds = clock() - started
        logger.info("recorded decodes of the batch sizes %s in %.1f s", self.buckets, self.seconds)

    def can_run(self, numbers: Sequence[int], methods: set[Method]) -> bool:
        """True when a recording serves the decode of these slots."""
        return methods <= self._methods and any(bucket >= len(numbers) for bucket in self._recordings)

    def run(self, numbers: Sequence[int]) -> torch.Tensor:
        """Queue the decode of the slots; their tokens [len(numbers)], valid until the next run."""
        bucket = min(bucket for bucket in self._recordings if bucket >= len(numbers))
        padded = [*numbers, *[self._slots.spare] * (bucket - len(numbers))]
        self._input[:bucket].copy_(self._slots.upload(padded))
        recording = self._recordings[bucket]
        recording.replay()
        return recording.output[: len(numbers)]
