"""What the device knows of each running sequence: one row per slot, so that a step needs no more than slot numbers."""

import math
from collections import Counter

import torch

from service.engine import logit_bias
from service.engine.base import SamplingParams
from service.engine.device import to_device, upload
from service.engine.sampling import FORBIDDEN, MOST_COUNTED, ONCE, SEEN, Method, Rows, frequency_of, method_of
from service.engine.steps.plan import Sequence

ROWS_AT_ONCE = 32
"""Rows whose marks are widened from bits together: bounds the memory of it to some 20 MB."""


class Slots:
    """`count` rows for sequences and one more, `spare`, for the rows that pad a batch.

    `tokens` and `positions` [count + 1] are the last token of each sequence and where it goes: with the next step
    its KV is written there, and the token after it is sampled. `tables` int32 [count + 1, width] are block tables,
    `parameters` [count + 1] say how each samples.
    """

    def __init__(self, count: int, width: int, vocab_size: int, device: torch.device) -> None:
        self.spare = count
        self._device = device
        self._vocab_size = vocab_size
        rows = count + 1
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.tables = torch.zeros(rows, width, dtype=torch.int32, device=device)
        self._whole = torch.zeros(3, rows, dtype=torch.int64, device=device)  # method, top_k, seed
        self._real = torch.ones(6, rows, dtype=torch.float32, device=device)  # the rest of `Rows`, in its order
        self._marks = torch.zeros(rows, vocab_size, dtype=torch.uint8, device=device)
        self._bias = torch.zeros(rows, logit_bias.WIDTH, dtype=torch.int32, device=device)
        self.parameters = self._rows_of(self._whole, self._real, self._marks, self._bias)
        # Made here: to advance takes no memory once it has begun to write.
        self._one = torch.ones(1, dtype=torch.int64, device=device)
        self._bits = torch.arange(8, dtype=torch.uint8, device=device)
        self._methods = [Method.GREEDY] * rows

    def admit(self, sequence: Sequence) -> None:
        """Give the sequence its row, as the host knows it. Nothing here waits for the device."""
        slot, request = sequence.slot, sequence.request
        self.set_parameters(slot, request.sampling)
        table = self.tables[slot].zero_()
        table[: len(sequence.blocks)] = self.upload(sequence.blocks, torch.int32)
        self._marks[slot].zero_().index_fill_(0, self.upload(request.prompt_ids), SEEN)
        # As if the prompt's last token had just been sampled: a finished prefill then advances like a decode.
        # Filled: a number that is assigned would be uploaded from pageable memory, and waited for.
        self.positions[slot].fill_(sequence.prompt_length - 1 + len(sequence.output))
        if sequence.output:
            self.tokens[slot].fill_(sequence.output[-1])
            counts = Counter(sequence.output)
            marks = self.upload([min(n, MOST_COUNTED) * ONCE | SEEN for n in counts.values()], torch.uint8)
            self._marks[slot].index_copy_(0, self.upload([*counts]), marks)

    def set_parameters(self, slot: int, p: SamplingParams) -> None:
        """How the slot samples from now on."""
        self._methods[slot] = method_of(p, self._vocab_size)
        seed = (p.seed + (1 << 63)) % (1 << 64) - (1 << 63)
        self._whole[:, slot] = self.upload([self._methods[slot], p.top_k, seed])
        log_min_p = math.log(p.min_p) if p.min_p else -math.inf
        real = [p.temperature, p.top_p, log_min_p, p.repetition_penalty, frequency_of(p), p.presence_penalty]
        self._real[:, slot] = self.upload(real, torch.float32)
        self._set_bias(slot, p)

    def _set_bias(self, slot: int, p: SamplingParams) -> None:
        if p.logit_bias:
            self._bias[slot] = self.upload(logit_bias.row_of(p), torch.int32)
        else:
            self._bias[slot].zero_()

    def restrict(self, slots: list[int], allowed: torch.Tensor) -> None:
        """Let each of `slots` [N] sample next only what its row of `allowed` allows: uint8 [N, bytes] in main memory, a
        bit a token, the lowest first."""
        whole = (self.upload(slots), to_device(allowed, self._device))
        for rows, packed in zip(*(torch.split(each, ROWS_AT_ONCE) for each in whole), strict=True):
            bits = (packed[:, :, None] >> self._bits) & 1
            forbidden = (bits.flatten(1)[:, : self._vocab_size] ^ 1) * FORBIDDEN
            self._marks.index_copy_(0, rows, self._marks[rows] & (0xFF ^ FORBIDDEN) | forbidden)

    def advance(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Each of `slots` [B] has sampled the token beside it. What takes memory comes first: half an advance, for want
        of it, could not be run again."""
        counts = (self._marks[slots, tokens] // ONCE + 1).clamp(max=MOST_COUNTED)
        marks = counts * ONCE | SEEN  # what was sampled was not forbidden
        self._marks.index_put_((slots, tokens), marks)
        self.tokens.index_copy_(0, slots, tokens)
        self.positions.index_add_(0, slots, self._one.expand_as(slots))
        self.positions[self.spare].zero_()  # padding rows would run out of the block table in time

    def rows(self, slots: torch.Tensor) -> Rows:
        """Sampling parameters of `slots` [B], gathered."""
        return self._rows_of(self._whole[:, slots], self._real[:, slots], self._marks[slots], self._bias[slots])

    @staticmethod
    def _rows_of(whole: torch.Tensor, real: torch.Tensor, marks: torch.Tensor, bias: torch.Tensor) -> Rows:
        (method, top_k, seed), (temperature, top_p, log_min_p, penalty, frequency, presence) = whole, real
        return Rows(method, temperature, top_k, top_p, log_min_p, penalty, frequency, presence, seed, marks, bias)

    def methods(self, slots: list[int]) -> set[Method]:
        """The sampling methods of `slots`, known without asking the device."""
        return {self._methods[slot] for slot in slots}

    def upload(self, values: list[int] | list[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """A tensor on the device, without waiting for it."""
        return upload(values, dtype, self._device)
