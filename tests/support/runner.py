"""A runner whose answers depend on every token it finds in its KV blocks, so that any block mix-up changes them.

Instead of keys and values a block stores a digest per position: of the token and, as keys and values do, of all that
is before it. The next token is a function of the whole context's digests, read back through the block table as the
device knows it. Work is queued as on a GPU stream and done as late as
possible, when somebody waits for it: host and device are as far apart as they can be.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from service.engine.base import GenerationRequest, Logprobs
from service.engine.kv_cache import SCRATCH_BLOCK
from service.engine.steps.plan import Decode, Sequence, StepPlan

VOCAB = 97


def digest(before: int, token: int) -> int:
    """What a position holds, given what the position before holds."""
    return zlib.crc32(b"%d,%d" % (before, token))


def next_token(context: Iterable[int], seed: int) -> int:
    """The model's head, over the digests of all positions."""
    return zlib.crc32(repr((seed, *context)).encode()) % VOCAB


def expected_output(request: GenerationRequest, allowed: Callable[[list[int]], list[int]] | None = None) -> list[int]:
    """What the request must give in full, from the request alone; `allowed`: what may follow an output, ascending."""
    context = list(accumulate(request.prompt_ids, digest, initial=0))[1:]
    output: list[int] = []
    while len(output) < request.max_new_tokens and not (output and output[-1] in request.stop_ids):
        token = next_token(context, request.sampling.seed)
        choice = allowed(output) if allowed else [token]
        output.append(choice[token % len(choice)])
        context.append(digest(context[-1], output[-1]))
    return output


def report_of(request: GenerationRequest, token: int) -> Logprobs | None:
    """What a token of the request's answer is reported with."""
    if request.logprobs is None:
        return None
    return Logprobs(-float(token), [token, *range(request.logprobs)], [-float(token), *range(request.logprobs)])


@dataclass
class Slot:
    """A sequence as the device knows it."""

    blocks: list[int]
    prompt: list[int]
    seed: int
    last: int = -1
    allowed: list[int] = field(default_factory=list)  # for the next sample; empty: any


@dataclass(eq=False)
class ContentPending:
    """A step in the stream; waiting for it runs the stream up to it."""

    stream: deque[Callable[[], None]]
    plan: StepPlan
    error: Exception | None
    draw: Callable[[], list[int]]
    sample_error: Exception | None = None
    result: list[int] | None = None

    def sample(self) -> None:
        if self.sample_error:
            raise self.sample_error
        self.stream.append(self._put_result)

    def _put_result(self) -> None:
        self.result = self.draw()

    def tokens(self) -> list[int]:
        if self.error:
            self.stream.clear()  # what was launched is lost: nobody will write it
            raise self.error
        while self.result is None:
            self.stream.popleft()()
        return self.result

    def logprobs(self) -> dict[int, Logprobs]:
        assert self.result is not None, "they come after the tokens"
        rows = enumerate(zip(self.plan.sampled, self.result, strict=True))
        reports = {place: report_of(sequence.request, token) for place, (sequence, token) in rows}
        return {place: report for place, report in reports.items() if report}


@dataclass
class ContentRunner:
    """Implements `Runner`. What is named `fail_...` breaks the next such call, once."""

    num_blocks: int = 17
    block_size: int = 4
    max_running: int = 4
    fail_begin: Exception | None = None
    fail_sample: Exception | None = None
    fail_tokens: Exception | None = None
    fail_admit: Exception | None = None
    fail_restrict: Exception | None = None
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._memory = [[-1] * self.block_size for _ in range(self.num_blocks)]
        self._slots: dict[int, Slot] = {}
        self._stream: deque[Callable[[], None]] = deque()
        self._known: set[int] = set()
        self._sequences: list[Sequence] = []  # kept alive: an id is one sequence's

    def admit(self, sequence: Sequence) -> None:
        error, self.fail_admit = self.fail_admit, None
        if error:
            raise error
        number, request = sequence.slot, sequence.request
        assert 0 <= number < self.max_running
        last = sequence.output[-1] if sequence.output else -1
        slot = Slot(list(sequence.blocks), list(request.prompt_ids), request.sampling.seed, last)
        # Admitted again, after a lost step, it has written some of its blocks, and others may share them.
        fresh = [] if id(sequence) in self._known else slot.blocks[sequence.cached // self.block_size :]
        self._known.add(id(sequence))
        self._sequences.append(sequence)
        self._stream.append(lambda: self._fill_slot(number, slot, fresh))

    def restrict(self, slots: list[int], allowed: NDArray[np.uint8]) -> None:
        error, self.fail_restrict = self.fail_restrict, None
        if error:
            raise error
        rows = np.unpackbits(allowed, axis=1, count=VOCAB, bitorder="little")
        for number, row in zip(slots, rows, strict=True):
            self._stream.append(lambda number=number, row=row: self._restrict(number, np.flatnonzero(row).tolist()))

    def begin(self, plan: StepPlan) -> ContentPending:
        error, self.fail_begin = self.fail_begin, None
        if error:
            raise error
        self.plans.append(plan)
        chunks = [(c.sequence.slot, c.start, c.end) for c in plan.chunks]
        decodes = [(d.sequence.slot, d.position) for d in plan.decodes]
        self._stream.append(lambda: self._compute(chunks, decodes))
        ends = [(c.sequence.slot, c.end) for c in plan.chunks if c.completes]
        ends += [(number, position + 1) for number, position in decodes]
        draw = partial(self._sample_all, ends)
        pending = ContentPending(self._stream, plan, self.fail_tokens, draw, self.fail_sample)
        self.fail_tokens = self.fail_sample = None
        return pending

    def _restrict(self, number: int, allowed: list[int]) -> None:
        self._slots[number].allowed = allowed

    def _fill_slot(self, number: int, slot: Slot, fresh: list[int]) -> None:
        """Blocks that were not shared are spoilt first: what a former owner left there must not happen to fit."""
        self._slots[number] = slot
        for block in fresh:
            self._memory[block] = [-1] * self.block_size

    def _compute(self, chunks: list[tuple[int, int, int]], decodes: list[tuple[int, int]]) -> None:
        for number, start, end in chunks:
            slot = self._slots[number]
            for position in range(start, end):
                self._write(slot, position, slot.prompt[position])
        for number, position in decodes:
            self._write(self._slots[number], position, self._slots[number].last)

    def _sample_all(self, ends: list[tuple[int, int]]) -> list[int]:
        return [self._sample(self._slots[number], length) for number, length in ends]

    def _sample(self, slot: Slot, length: int) -> int:
        slot.last = next_token((self._read(slot, position) for position in range(length)), slot.seed)
        if slot.allowed:
            slot.last = slot.allowed[slot.last % len(slot.allowed)]
        slot.allowed = []  # a restriction is for one token
        return slot.last

    def _write(self, slot: Slot, position: int, token: int) -> None:
        block = slot.blocks[position // self.block_size]
        assert block != SCRATCH_BLOCK, "a sequence owns the scratch block"
        before = self._read(slot, position - 1) if position else 0
        self._memory[block][position % self.block_size] = digest(before, token)

    def _read(self, slot: Slot, position: int) -> int:
        return self._memory[slot.blocks[position // self.block_size]][position % self.block_size]


def planned_tokens(plan: StepPlan) -> int:
    """How many positions a step computes."""
    return len(plan.decodes) + sum(chunk.end - chunk.start for chunk in plan.chunks)


def positions_of(decodes: list[Decode]) -> dict[str, int]:
    """Request id -> decoded position."""
    return {decode.sequence.request.id: decode.position for decode in decodes}
