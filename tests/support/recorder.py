"""A device layer without a device: recordings that compute their body anew into the same output, as a graph would."""

from collections.abc import Callable

import torch

from service.engine.cuda.graphs import Recording


class ReplayingRecorder:
    """`Recorder` that counts replays by output size and fails for the output sizes, or the effects, it is told to.

    All outputs lie in one buffer, like those of graphs with a common pool: who reads one too late reads another's.
    """

    def __init__(
        self, failing: tuple[int, ...] = (), poisoned: bool = False, failing_effects: tuple[int, ...] = ()
    ) -> None:
        self.recorded: list[int] = []
        self.replays: list[int] = []
        self.effects = 0
        self.effect_replays = 0
        self.checked = 0
        self._failing_effects = failing_effects
        self._failing = failing
        self._poisoned = poisoned
        self._shared = torch.empty(0, dtype=torch.int64)

    def record(self, body: Callable[[], torch.Tensor]) -> Recording:
        rows = body().shape[0]
        if rows in self._failing:
            raise RuntimeError(f"operation not permitted when stream is capturing ({rows})\nand a long trace")
        self.recorded.append(rows)
        if rows > self._shared.shape[0]:
            assert len(self.recorded) == 1, "the largest must come first: its memory serves the others"
            self._shared = torch.zeros(rows, dtype=torch.int64)
        output = self._shared[:rows]

        def replay() -> None:
            self.replays.append(rows)
            output.copy_(body())

        return Recording(replay, output)

    def rehearse(self, body: Callable[[], None]) -> None:
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        self.effects += 1
        if self.effects in self._failing_effects:
            raise RuntimeError(f"operation not permitted when stream is capturing (effect {self.effects})\nand more")
        body()

        def replay() -> None:
            self.effect_replays += 1
            body()

        return replay

    def require_usable(self) -> None:
        self.checked += 1
        if self._poisoned:
            raise RuntimeError("the device is beyond use")
