"""What one recorded step computes between the attentions of its prompts, layer by layer, in fixed buffers."""

from dataclasses import dataclass
from typing import Self

import torch

from service.engine.attention import PagedCache
from service.engine.config import ModelConfig
from service.engine.kernels.batch import DecodeBatch
from service.engine.model import Model, StepRows
from service.engine.steps.slots import Slots


@dataclass(frozen=True, slots=True, order=True)
class StepShape:
    """So many rows in all, of which the first ones are for decodes, the others for prompts."""

    rows: int
    decodes: int


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """What passes between recordings and what the host launches between them: it stays where it is."""

    numbers: torch.Tensor  # int64 [T]: slots of the decodes
    rows: torch.Tensor  # int64 [3, T]: tokens, positions, places
    qkv: torch.Tensor  # [T, (heads + 2 * kv_heads) * head_dim]
    attended: torch.Tensor  # [T, heads * head_dim]
    hidden: torch.Tensor  # [T, hidden], the step's result

    @classmethod
    def allocate(cls, c: ModelConfig, most: int, spare: int, device: torch.device, dtype: torch.dtype) -> Self:
        """For up to `most` rows; all decodes those of the `spare` slot."""

        def zeros(width: int) -> torch.Tensor:
            return torch.zeros(most, width, dtype=dtype, device=device)

        return cls(
            numbers=torch.full((most,), spare, dtype=torch.int64, device=device),
            rows=torch.zeros(3, most, dtype=torch.int64, device=device),
            qkv=zeros(c.query_size + 2 * c.kv_size),
            attended=zeros(c.query_size),
            hidden=zeros(c.hidden_size),
        )


class SegmentBodies:
    """The segments of one shape of steps, to be run in order, each once or more.

    What one leaves for the next, a residual, is held until `release`: its memory must not be given to a later segment
    before that one was recorded, and may be after it. Copies, which are no kernels, come last: a launch that overlaps
    the one before it needs a kernel there (see `kernels.overlap`).
    """

    def __init__(self, model: Model, cache: PagedCache, slots: Slots, buffers: StepBuffers, shape: StepShape) -> None:
        self._model, self._cache, self._slots = model, cache, slots
        self._decodes = shape.decodes
        self._numbers = buffers.numbers[: shape.decodes]
        self._rows = StepRows(*buffers.rows[:, : shape.rows])
        self._qkv, self._attended = buffers.qkv[: shape.rows], buffers.attended[: shape.rows]
        self._hidden = buffers.hidden[: shape.rows]
        self._residuals: dict[int, torch.Tensor] = {}
        self._batch: DecodeBatch | None = None

    def run(self) -> None:
        """All of them in order, as if the step had no prompts."""
        self.enter()
        for layer in range(self._model.config.num_layers):
            self.advance(layer)
            self.release(layer)

    def enter(self) -> None:
        """The first one: where the decodes stand and how their attention is divided; `Model.enter`."""
        if self._decodes:
            self._find_decodes()
        qkv, self._residuals[0] = self._model.enter(self._rows.tokens)
        self._leave(0, qkv)

    def advance(self, layer: int) -> None:
        """The one after the attention of `layer`: `Model.advance`."""
        x, self._residuals[layer + 1] = self._model.advance(layer, self._attended, self._residuals[layer])
        if layer + 1 < self._model.config.num_layers:
            self._leave(layer + 1, x)
        else:
            self._hidden.copy_(x)

    def release(self, layer: int) -> None:
        """`advance(layer)` was recorded."""
        del self._residuals[layer]

    def _find_decodes(self) -> None:
        ops = self._model.ops
        found = ops.locate(self._slots, self._numbers, self._cache.block_size)
        self._batch = ops.plan_decode(self._slots.tables, self._numbers, found.lengths, self._cache.keys[0])
        self._rows.tokens[: self._decodes].copy_(found.tokens)
        self._rows.positions[: self._decodes].copy_(found.positions)
        self._rows.places[: self._decodes].copy_(found.places)

    def _leave(self, layer: int, qkv: torch.Tensor) -> None:
        """The projection, rotated, for the prompts' attention, and the decodes' attention itself."""
        self._model.rotate(layer, qkv, self._rows, self._cache)
        if self._batch is not None:
            q, _, _ = self._model.heads(qkv[: self._decodes])
            keys, values = self._cache.keys[layer], self._cache.values[layer]
            scale = self._model.config.head_dim**-0.5
            attended = self._model.ops.decode_attention(q, keys, values, self._batch, scale)
            self._attended[: self._decodes].copy_(attended.flatten(1))
        self._qkv.copy_(qkv)
