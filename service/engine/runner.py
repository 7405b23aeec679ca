"""Computes the steps a scheduler plans: prefill of prompt chunks, one decode of the whole batch, sampling."""

from collections.abc import Iterator

import torch

from service.engine.attention import ChunkSpan, DecodeAttention, PagedCache, PrefillAttention
from service.engine.model import Model
from service.engine.sampling import sample
from service.engine.slots import Slots
from service.engine.step import Chunk, Decode, OutOfMemory, Sequence, StepPlan


class PendingTokens:
    """`Pending`: tokens on their way to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tokens.is_cuda:
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens = host.copy_(tokens, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._tokens = tokens

    def tokens(self) -> list[int]:
        """Wait for the step; one token per entry of the plan's `sampled`."""
        if self._event is not None:
            self._event.synchronize()
        values: list[int] = self._tokens.tolist()
        return values


class TorchRunner:
    """`Runner` on one device in plain torch. `max_context` bounds the positions of a sequence."""

    def __init__(self, model: Model, cache: PagedCache, max_running: int, max_context: int) -> None:
        self.num_blocks = cache.num_blocks
        self.block_size = cache.block_size
        self.max_running = max_running
        self._model = model
        self._cache = cache
        width = -(-max_context // cache.block_size)
        self._slots = Slots(max_running, width, model.config.vocab_size, cache.device)

    @torch.inference_mode()
    def admit(self, sequence: Sequence) -> None:
        """Fill the sequence's slot."""
        self._slots.admit(sequence)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingTokens:
        """Start one step.

        Raises OutOfMemory when it did not fit, even after the allocator's spare memory was given back.
        """
        try:
            return self._launch(plan)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        try:
            return self._launch(plan)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error)) from error

    def _launch(self, plan: StepPlan) -> PendingTokens:
        # The slots change last, when nothing large is left to allocate: a step out of memory can be run again.
        self._clear_entered_blocks(plan)
        hidden = [self._prefill(plan.chunks)] if plan.chunks else []
        if plan.decodes:
            hidden.append(self._decode(plan.decodes))
        slots = [sequence.slot for sequence in plan.sampled]
        if not slots:
            return PendingTokens(self._slots.tokens[:0])
        return PendingTokens(self._sample(torch.cat(hidden), slots))

    def _prefill(self, chunks: list[Chunk]) -> torch.Tensor:
        """Hidden states [completed chunks, hidden] of the last prompt tokens."""
        upload = self._slots.upload
        tokens = upload([t for c in chunks for t in c.sequence.request.prompt_ids[c.start : c.end]])
        positions = upload([p for c in chunks for p in range(c.start, c.end)])
        spans = list(self._spans(chunks))
        places = upload([place for c in chunks for place in self._places(c)])
        hidden = self._model.forward(tokens, positions, PrefillAttention(self._cache, places, spans))
        return hidden[upload([span.last - 1 for c, span in zip(chunks, spans, strict=True) if c.completes])]

    def _spans(self, chunks: list[Chunk]) -> Iterator[ChunkSpan]:
        first = 0
        for chunk in chunks:
            last = first + chunk.end - chunk.start
            used = -(-chunk.end // self.block_size)
            yield ChunkSpan(first, last, chunk.end, self._slots.tables[chunk.sequence.slot, :used])
            first = last

    def _places(self, chunk: Chunk) -> Iterator[int]:
        blocks, size = chunk.sequence.blocks, self.block_size
        return (blocks[p // size] * size + p % size for p in range(chunk.start, chunk.end))

    def _decode(self, decodes: list[Decode]) -> torch.Tensor:
        """Hidden states [B, hidden] of each sequence's last token."""
        slots = self._slots.upload([d.sequence.slot for d in decodes])
        width = max(d.position for d in decodes) // self.block_size + 1
        positions = self._slots.positions[slots]
        attention = DecodeAttention(self._cache, self._slots.tables[slots, :width], positions)
        return self._model.forward(self._slots.tokens[slots], positions, attention)

    def _sample(self, hidden: torch.Tensor, slots: list[int]) -> torch.Tensor:
        rows = self._slots.upload(slots)
        logits = self._model.logits(hidden)
        places = self._slots.positions[rows] + 1
        tokens = sample(logits, self._slots.rows(rows), places, self._slots.methods(slots))
        self._slots.advance(rows, tokens)
        return tokens

    def _clear_entered_blocks(self, plan: StepPlan) -> None:
        """Blocks this step begins to fill but leaves partly unwritten may hold anything of a former owner's."""
        size = self.block_size
        ends = [(c.sequence, c.start, c.end) for c in plan.chunks]
        ends += [(d.sequence, d.position, d.position + 1) for d in plan.decodes]
        entered = [s.blocks[end // size] for s, start, end in ends if end % size and start <= end // size * size]
        if entered:
            self._cache.clear(self._slots.upload(entered))
