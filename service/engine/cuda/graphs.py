"""Decode steps as CUDA graphs: two per batch bucket, recorded at start, in one memory pool. Between the first, which
computes hidden states, and the second, which samples, a host may still settle what is sampled.

What is recorded and when, which bucket serves a batch, and what happens when a recording fails is decided here, without
CUDA; a `Recorder` does the recording (`recorder.CudaRecorder` on a GPU).
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

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

Compute = Callable[[torch.Tensor], torch.Tensor]
"""From slots [B] to the hidden states [B, hidden] of their last tokens."""
Sample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From these and the slots to the next tokens [B]; the slots advance."""


class Begun(NamedTuple):
    """A step that is queued but for its sampling."""

    hidden: torch.Tensor  # [>= B, hidden]: what it samples from, rows of padding included
    draw: Callable[[], torch.Tensor]  # queues the sampling, and gives the tokens [B]


class Recorder(Protocol):
    """Records device work, which leaves its results in tensors of the caller's: all other memory is shared."""

    def rehearse(self, body: Callable[[], None]) -> None:
        """Run `body`, so that nothing has to be made ready when it is captured."""
        ...

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        """Record `body`; its replay. Raises whatever the device makes of it."""
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

    `hidden` and `dtype` are those of hidden states. `methods` are those a recording can sample by: all, when the
    sampler reads each row's method on the device.
    """

    def __init__(self, slots: Slots, hidden: int, dtype: torch.dtype, methods: set[Method]) -> None:
        self.degraded: list[str] = []
        self.seconds = 0.0
        self._slots = slots
        self._methods = methods
        self._replays: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._numbers = torch.full_like(slots.tokens, slots.spare)
        self._hidden = torch.zeros(len(slots.tokens), hidden, dtype=dtype, device=slots.tokens.device)
        self._tokens = torch.zeros_like(slots.tokens)

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that were recorded, ascending."""
        return tuple(sorted(self._replays))

    def record(
        self,
        recorder: Recorder,
        compute: Compute,
        sample: Sample,
        buckets: Sequence[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record both for each bucket. A failure costs that bucket its graphs and is named in `degraded`."""
        started = clock()

        def record_one(bucket: int) -> None:
            numbers, hidden = self._numbers[:bucket].fill_(self._slots.spare), self._hidden[:bucket]

            def first() -> None:
                hidden.copy_(compute(numbers))

            def second() -> None:
                self._tokens[:bucket].copy_(sample(hidden, numbers))

            recorder.rehearse(first)
            recorder.rehearse(second)
            self._replays[bucket] = recorder.capture(first), recorder.capture(second)

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
        return methods <= self._methods and any(bucket >= len(numbers) for bucket in self._replays)

    def run(self, numbers: Sequence[int]) -> Begun:
        """Queue the decode of the slots but for the sampling. No other may run before that; the tokens are valid until
        the next one samples."""
        bucket = min(bucket for bucket in self._replays if bucket >= len(numbers))
        padded = [*numbers, *[self._slots.spare] * (bucket - len(numbers))]
        self._numbers[:bucket].copy_(self._slots.upload(padded))
        compute, sample = self._replays[bucket]
        compute()

        def draw() -> torch.Tensor:
            sample()
            return self._tokens[: len(numbers)]

        return Begun(self._hidden[:bucket], draw)
