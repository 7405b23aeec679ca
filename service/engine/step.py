"""What scheduler and runner say to each other: sequences, and the plan of one step. No torch here.

A step computes some chunks of prompts (prefill) and one more token of each running sequence (decode). The plan
names positions, never token values: a decode's input token may still be on the device when its step is planned.
"""

from dataclasses import dataclass, field
from typing import Protocol

from service.engine.base import GenerationRequest


@dataclass(eq=False, slots=True)
class Sequence:
    """One request between admission and its end."""

    request: GenerationRequest
    arrival: float  # time.monotonic() when it came in
    slot: int = -1  # row of the runner's per-sequence tensors; -1 while it waits
    blocks: list[int] = field(default_factory=list)  # KV blocks by position, all reserved at admission
    cached: int = 0  # prompt tokens found in the prefix cache; whole blocks, never the whole prompt
    scheduled: int = 0  # positions whose KV is written once all planned steps have run
    output: list[int] = field(default_factory=list)  # tokens delivered so far

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def is_prefilling(self) -> bool:
        return self.scheduled < self.prompt_length


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prefill of the prompt positions start <= i < end. The chunk that ends the prompt samples the first token."""

    sequence: Sequence
    start: int
    end: int

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
    """A step that was launched."""

    def tokens(self) -> list[int]:
        """Wait for the step; one token per entry of the plan's `sampled`."""
        ...


class Runner(Protocol):
    """Computes steps. `num_blocks` KV blocks of `block_size` tokens; `max_running` sequences at once."""

    num_blocks: int
    block_size: int
    max_running: int

    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's slot: block table, sampling parameters, which tokens its prompt holds."""
        ...

    def launch(self, plan: StepPlan) -> Pending:
        """Start one step. On a GPU this returns before the step is done, and steps run in launch order."""
        ...
