"""Steps with prompts in them: all but the attention of the prompts, recorded for each layer and some shapes of steps.

Attention over prompts has to know their lengths, so that such a step is launched from the host. Its some thousand
launches take the host longer than a decode takes to run, and whoever is being answered waits for them. Recorded, what
lies between two attentions is one launch a layer (piecewise graphs, as vLLM calls them); `python -m
tests.bench.host_launches` compares the two.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from service.engine.attention import Attention, PagedCache
from service.engine.cuda.graphs import Recorder, record_each
from service.engine.cuda.segment_bodies import SegmentBodies, StepBuffers, StepShape
from service.engine.model import Model
from service.engine.steps.slots import Slots

logger = logging.getLogger(__name__)

ROWS = (16, 64, 128, 192, 256, 384, 512)
"""Rows of a recorded step. Up to some 200 a GPU is bound by reading the weights, and rows of padding cost little;
beyond the last one it takes longer to compute a layer than the host to launch it."""
DECODES = (0, 32, 96)
"""How many of them are for decodes; and as many as ever run at once."""


def shapes_for(max_running: int, step_tokens: int) -> list[StepShape]:
    """What steps with at most so many decodes and prompt tokens are padded to, ascending."""
    kinds = {*(n for n in DECODES if n < max_running), max_running}
    smaller = dict(zip(ROWS, (0, *ROWS), strict=False))
    # A shape is of use when it has room for prompts, and when the one before it is too small for some step.
    return sorted(StepShape(rows, n) for n in kinds for rows in ROWS if rows > n and smaller[rows] < n + step_tokens)


class Segments:
    """Recorded steps of `model` over `cache` and `slots`. Decodes are padded with the spare slot, prompts with rows
    that compute token 0 and write to the scratch block."""

    def __init__(self, model: Model, cache: PagedCache, slots: Slots) -> None:
        self.degraded: list[str] = []
        self._model, self._cache, self._slots = model, cache, slots
        self._buffers = StepBuffers.allocate(model.config, ROWS[-1], slots.spare, cache.device, cache.keys[0].dtype)
        self._replays: dict[StepShape, list[Callable[[], None]]] = {}

    @property
    def shapes(self) -> list[StepShape]:
        """What was recorded, ascending."""
        return sorted(self._replays)

    def record(
        self,
        recorder: Recorder,
        shapes: Sequence[StepShape],
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Record `shapes`, the largest first, whose memory serves all others; none is begun after so many seconds. A
        failure costs that shape its recordings and is named in `degraded`."""
        started = clock()

        def record_one(shape: StepShape) -> None:
            self._replays[shape] = self._recorded(recorder, shape)

        failed, left = record_each(sorted(shapes, reverse=True), record_one, recorder, started + seconds, clock)
        self.degraded += [f"segments: {shape.rows} rows: {reason}" for shape, reason in failed.items()]
        if left:
            self.degraded.append(f"segments: no time was left for {len(left)} of {len(shapes)} shapes of steps")
        logger.info("recorded %d shapes of steps with prompts in %.1f s", len(self._replays), clock() - started)

    def shape(self, decodes: int, prompt_rows: int) -> StepShape | None:
        """The least shape with room for so many; None when there is none."""
        fitting = (s for s in self._replays if s.decodes >= decodes and s.rows - s.decodes >= prompt_rows)
        return min(fitting, default=None)

    def forward(
        self, shape: StepShape, numbers: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor, prompts: Attention
    ) -> torch.Tensor:
        """Hidden states [rows, hidden]: from row 0 on of decodes of the slots of these `numbers`, from row
        `shape.decodes` on of the prompts' `tokens` at `positions`; valid until the next call."""
        buffers, first, last = self._buffers, shape.decodes, shape.decodes + tokens.shape[0]
        buffers.numbers[numbers.shape[0] : first].fill_(self._slots.spare)
        buffers.numbers[: numbers.shape[0]].copy_(numbers)
        buffers.rows[:, first:last].copy_(torch.stack((tokens, positions, prompts.places)))
        buffers.rows[:, last : shape.rows].zero_()
        enter, *others = self._replays[shape]
        enter()
        for layer, replay in enumerate(others):
            attended = prompts(layer, *self._model.heads(buffers.qkv[first:last]))
            buffers.attended[first:last].copy_(attended.flatten(1))
            replay()
        return buffers.hidden[: shape.rows]

    def _recorded(self, recorder: Recorder, shape: StepShape) -> list[Callable[[], None]]:
        bodies = SegmentBodies(self._model, self._cache, self._slots, self._buffers, shape)
        recorder.rehearse(bodies.run)
        replays = [recorder.capture(bodies.enter)]
        for layer in range(self._model.config.num_layers):
            replays.append(recorder.capture(partial(bodies.advance, layer)))
            bodies.release(layer)
        return replays
