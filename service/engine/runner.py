"""Computes the steps a scheduler plans: one pass over prompt chunks and decodes together, then sampling."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.attention import Attention, ChunkSpan, MixedAttention, PagedCache
from service.engine.cuda.graphs import RECORDING_SECONDS, Begun, DecodeGraphs, Recorder
from service.engine.cuda.paths import Paths
from service.engine.cuda.segments import Segments, shapes_for
from service.engine.device_errors import in_room
from service.engine.kernels import torch_ops
from service.engine.logprobs import Report
from service.engine.model import Model
from service.engine.sampling import Method
from service.engine.steps.pending import PendingTokens
from service.engine.steps.plan import Chunk, Sequence, StepPlan
from service.engine.steps.slots import Slots


class TorchRunner:
    """`Runner` on one device. `max_context` bounds the positions of a sequence.

    `graphs` computes the steps that are decodes alone, where it can, and `segments` most of the others; None of both
    computes all steps launch by launch.
    """

    def __init__(
        self, model: Model, cache: PagedCache, max_running: int, max_context: int, paths: Paths | None = None
    ) -> None:
        self.num_blocks = cache.num_blocks
        self.block_size = cache.block_size
        self.max_running = max_running
        self.graphs: DecodeGraphs | None = None
        self.segments: Segments | None = None
        self._model = model
        self._cache = cache
        self._paths = paths or Paths()
        width = -(-max_context // cache.block_size)
        self.slots = Slots(max_running, width, model.config.vocab_size, cache.device)

    @torch.inference_mode()
    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's slot. Raises OutOfMemory as `begin` does."""
        in_room(lambda: self.slots.admit(sequence))

    @torch.inference_mode()
    def restrict(self, slots: list[int], allowed: NDArray[np.uint8]) -> None:
        """Let `slots` sample next only what is allowed. Raises OutOfMemory as `begin` does."""
        in_room(lambda: self.slots.restrict(slots, torch.from_numpy(allowed)))

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> PendingTokens:
        """Start one step, which is still to sample.

        Raises OutOfMemory when it did not fit, even after the allocator's spare memory was given back.
        """
        begun = in_room(lambda: self._begin(plan))
        return PendingTokens(begun.draw, self._report(plan, begun.hidden))

    def launch(self, plan: StepPlan) -> PendingTokens:
        """All of one step. Raises OutOfMemory as `begin` does."""
        pending = self.begin(plan)
        pending.sample()
        return pending

    @torch.inference_mode()
    def record(self, recorder: Recorder) -> None:
        """Have decodes recorded, one for each bucket of the paths. What could not be is in `graphs.degraded`."""
        # A sampler of kernels reads each row's method on the device; torch's computes every method it is told of, and
        # a sort of the vocabulary, seldom asked for, would cost all others.
        sorts = self._model.ops.sample is torch_ops.sample
        methods = set(Method) - ({Method.SORTED} if sorts else set())
        config, dtype = self._model.config, self._cache.keys[0].dtype
        self.graphs = DecodeGraphs(self.slots, config.hidden_size, dtype, methods)
        self.graphs.record(recorder, self.compute, partial(self.sample, methods=methods), self._paths.buckets)

    @torch.inference_mode()
    def record_segments(self, recorder: Recorder, step_tokens: int) -> None:
        """Have steps with prompts of up to `step_tokens` recorded, in the time that the decodes have left. What could
        not be is in `segments.degraded`."""
        spent = self.graphs.seconds if self.graphs is not None else 0.0
        self.segments = Segments(self._model, self._cache, self.slots)
        self.segments.record(recorder, shapes_for(self.max_running, step_tokens), RECORDING_SECONDS - spent)

    @torch.inference_mode()
    def decode(self, slots: torch.Tensor, methods: set[Method], width: int = 0) -> torch.Tensor:
        """One more token for each of `slots` [B], whose rows advance; `width`: blocks of the longest sequence."""
        return self.sample(self.compute(slots, width), slots, methods)

    def compute(self, slots: torch.Tensor, width: int = 0) -> torch.Tensor:
        """The hidden states [B, hidden] of the last tokens of `slots` [B]; `width` as for `decode`."""
        if self._paths.rotates:
            return self._model.decode(*self._paths.rotating(self._cache, self.slots, slots))
        inputs, attention = self._paths.decode(self._cache, self.slots, slots, width)
        return self._model.forward(inputs.tokens, inputs.positions, attention)

    def sample(self, hidden: torch.Tensor, slots: torch.Tensor, methods: set[Method]) -> torch.Tensor:
        """The next tokens [B] of `slots` [B] by their hidden states [B, hidden]; the rows advance."""
        logits = self._model.logits(hidden)
        return self._model.ops.sample(logits, self.slots, slots, methods)

    def _report(self, plan: StepPlan, hidden: torch.Tensor) -> Report | None:
        """What the step's tokens are reported with, if a request asks."""
        counts = [sequence.request.logprobs for sequence in plan.sampled]
        asked = {place: count for place, count in enumerate(counts) if count is not None}
        return Report(asked, hidden, self._model.logits, self.slots.upload) if asked else None

    def _begin(self, plan: StepPlan) -> Begun:
        """Queue all of a step but what gives its tokens. The slots change then, when nothing large is left to allocate:
        either part can be run again when it was out of memory."""
        self._clear_entered_blocks(plan)
        numbers = [sequence.slot for sequence in plan.sampled]
        methods = self.slots.methods(numbers)
        if self.graphs is not None and not plan.chunks and self.graphs.can_run(numbers, methods):
            return self.graphs.run(numbers)
        rows, hidden = self._forward(plan)
        if not numbers:
            return Begun(hidden[:0], lambda: self.slots.tokens[:0])
        slots = self.slots.upload([*numbers, *self._padding(plan)])
        sampled = hidden[rows]
        return Begun(sampled, lambda: self.sample(sampled, slots, methods)[: len(numbers)])

    def _padding(self, plan: StepPlan) -> list[int]:
        """The spare slot, as often as decodes are padded."""
        count = len(plan.decodes)
        return [self.slots.spare] * ((self._paths.padded(count) if count else 0) - count)

    def _forward(self, plan: StepPlan) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows that sample [R], and hidden states [T, hidden]: of decodes first, padded, then of chunks."""
        numbers = [d.sequence.slot for d in plan.decodes] + self._padding(plan)
        prompt_rows = sum(chunk.end - chunk.start for chunk in plan.chunks)
        shape = self.segments.shape(len(numbers), prompt_rows) if self.segments and plan.chunks else None
        if self.segments and shape:
            first, slots = shape.decodes, self.slots.upload(numbers)
            hidden = self.segments.forward(shape, slots, *self._prompt_part(plan.chunks))
        else:
            first, hidden = len(numbers), self._forward_by_launches(plan, numbers)
        spans = zip(plan.chunks, self._spans(plan.chunks), strict=True)
        ends = [first + span.last - 1 for chunk, span in spans if chunk.completes]
        return self.slots.upload([*ends, *range(len(numbers))]), hidden

    def _forward_by_launches(self, plan: StepPlan, numbers: list[int]) -> torch.Tensor:
        """Hidden states [T, hidden] of decodes of the slots of these `numbers`, then of chunks."""
        if not plan.chunks:
            return self.compute(self.slots.upload(numbers), self._width(plan))
        parts = [self._decode_part(plan, numbers)] if numbers else []
        parts.append(self._prompt_part(plan.chunks))
        tokens = torch.cat([part[0] for part in parts])
        positions = torch.cat([part[1] for part in parts])
        attentions = [part[2] for part in parts]
        attention = attentions[0] if len(attentions) == 1 else MixedAttention(*attentions)
        return self._model.forward(tokens, positions, attention)

    def _prompt_part(self, chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor, Attention]:
        upload = self.slots.upload
        tokens = upload([t for c in chunks for t in c.sequence.request.prompt_ids[c.start : c.end]])
        positions = upload([p for c in chunks for p in range(c.start, c.end)])
        places = upload([place for c in chunks for place in self._places(c)])
        return tokens, positions, self._paths.prefill(self._cache, places, list(self._spans(chunks)))

    def _decode_part(self, plan: StepPlan, numbers: list[int]) -> tuple[torch.Tensor, torch.Tensor, Attention]:
        inputs, attention = self._paths.decode(self._cache, self.slots, self.slots.upload(numbers), self._width(plan))
        return inputs.tokens, inputs.positions, attention

    def _width(self, plan: StepPlan) -> int:
        """Blocks of the longest sequence that is decoded."""
        return max(d.position for d in plan.decodes) // self.block_size + 1

    def _spans(self, chunks: list[Chunk]) -> Iterator[ChunkSpan]:
        first = 0
        for chunk in chunks:
            last = first + chunk.end - chunk.start
            used = -(-chunk.end // self.block_size)
            yield ChunkSpan(first, last, chunk.end, self.slots.tables[chunk.sequence.slot, :used])
            first = last

    def _places(self, chunk: Chunk) -> Iterator[int]:
        blocks, size = chunk.sequence.blocks, self.block_size
        return (blocks[p // size] * size + p % size for p in range(chunk.start, chunk.end))

    def _clear_entered_blocks(self, plan: StepPlan) -> None:
        """Blocks this step begins to fill but leaves partly unwritten may hold anything of a former owner's.

        Planned attention never looks behind a sequence's end, so that there is nothing to clear for it.
        """
        if self._paths.plans_decode:
            return
        size = self.block_size
        ends = [(c.sequence, c.start, c.end) for c in plan.chunks]
        ends += [(d.sequence, d.position, d.position + 1) for d in plan.decodes]
        entered = [s.blocks[end // size] for s, start, end in ends if end % size and start <= end // size * size]
        if entered:
            self._cache.clear(self.slots.upload(entered))
