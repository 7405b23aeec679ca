"""What scheduler and runner say to each other: sequences, and the plan of one step. No torch here.

A step computes some chunks of prompts (prefill) and one more token of each running sequence (decode). The plan
names positions, never token values: a decode's input token may still be on the device when its step is planned.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from service.engine.base import FinishReason, GenerationRequest, Logprobs, Matcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class OutOfMemory(Exception):
    """The device has no room for this step, also after the runner freed what it could and tried once more."""


@dataclass(eq=False, slots=True)
class Sequence:
    """One request between its arrival and its end.

    Slot and blocks stay as they were when it ends: a step that is still in flight may refer to them.
    """

    request: GenerationRequest
    arrival: float  # time.monotonic() when it came in
    matcher: Matcher | None = None  # where its output stands in its grammar
    slot: int = -1  # row of the runner's per-sequence tensors; -1 while it waits
    blocks: list[int] = field(default_factory=list)  # KV blocks by position, all reserved at admission
    cached: int = 0  # prompt tokens found in the prefix cache; whole blocks, never the whole prompt
    scheduled: int = 0  # positions whose KV is written once all planned steps have run
    output: list[int] = field(default_factory=list)  # tokens delivered so far
    admitted: float = 0.0  # time.monotonic() when it got its slot
    ended: bool = False  # its Finish is out; tokens that steps in flight still yield for it are dropped
    was_lost: bool = False  # a launched step of its prompt, or of its decodes alone, lacked memory
    prompt_length: int = field(init=False)
    positions: int = field(init=False)  # KV positions it can need at most: the last token's KV is never written

    def __post_init__(self) -> None:
        self.prompt_length = len(self.request.prompt_ids)
        self.positions = self.prompt_length + self.request.max_new_tokens - 1

    @property
    def problem(self) -> str:
        """Why the answer can't be gone on with; empty while it can."""
        return self.matcher.problem if self.matcher else ""

    def put(self, token: int) -> FinishReason | None:
        """The answer goes on with `token`; why it ends with it, if it does."""
        self.output.append(token)
        if self.matcher:
            self.matcher.advance(token)
            if self.problem:
                return FinishReason.ERROR if self.matcher.is_ours else FinishReason.REJECTED
        if token in self.request.stop_ids and len(self.output) > len(self.request.forced):
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.output) == self.request.max_new_tokens else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prefill of the prompt positions start <= i < end. The chunk that ends the prompt samples the first token."""

    sequence: Sequence
    start: int
    end: int

    @property
    def is_first(self) -> bool:
        """True of a sequence's first chunk: before it, the runner is told of the sequence."""
        return self.start == self.sequence.cached

    @property
    def completes(self) -> bool:
        return self.end == self.sequence.prompt_length


@dataclass(frozen=True, slots=True)
class Decode:
    """One more token: the last sampled one is written at `position`, the next one is sampled."""

    sequence: Sequence
    position: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step's work, in first-come order."""

    chunks: list[Chunk]
    decodes: list[Decode]

    @property
    def sampled(self) -> list[Sequence]:
        """The sequences that get a token in this step, in the order in which a runner returns the tokens."""
        return [c.sequence for c in self.chunks if c.completes] + [d.sequence for d in self.decodes]


class Pending(Protocol):
    """A step that was begun."""

    def sample(self) -> None:
        """Have its tokens drawn, once, as soon as the rest of it is computed. No other step begins before that.

        Raises OutOfMemory when none were drawn and no slot has changed: the step may be planned anew.
        """
        ...

    def tokens(self) -> list[int]:
        """Wait for the step; one token per entry of the plan's `sampled`.

        Raises OutOfMemory when the step turns out to have lacked memory: it and the steps behind it are lost, and what
        could be freed is.
        """
        ...

    def logprobs(self) -> dict[int, Logprobs]:
        """After `tokens`: what those are reported with whose requests ask, by their places among them."""
        ...


class Runner(Protocol):
    """Computes steps. `num_blocks` KV blocks of `block_size` tokens; `max_running` sequences at once.

    Block 0 never belongs to a sequence: it is scratch, for the rows that pad a batch.
    """

    num_blocks: int
    block_size: int
    max_running: int

    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's slot: block table, sampling parameters, which tokens its prompt holds.

        Comes right before the step with the sequence's first chunk, while earlier steps may be in flight: they may
        still use the slot for its previous owner, so what is written on the device must be ordered behind them. Comes
        again, with the tokens in `output`, after a step was lost: the slot's contents are undefined then.

        Raises OutOfMemory when there was no room; to be called again then.
        """
        ...

    def begin(self, plan: StepPlan) -> Pending:
        """Start one step, all but its sampling. On a GPU this returns before that is done, and steps run in order.

        Raises OutOfMemory when the step did not start and may be planned anew; any other error ends the engine.
        """
        ...

    def restrict(self, slots: list[int], allowed: "NDArray[np.uint8]") -> None:
        """Let each of `slots` [N] sample next only what its row of `allowed` [N, bytes] allows: a bit a token, the
        lowest first. It is told anew for each step that samples them, before or after that begins, and before it
        samples. Raises OutOfMemory as `admit` does.
        """
        ...
