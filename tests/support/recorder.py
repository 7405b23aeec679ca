"""A device layer without a device: recordings that do their work anew, as a graph would."""

from collections.abc import Callable, Collection


class ReplayingRecorder:
    """`Recorder` that counts its replays and fails for the recordings it is told to, counted from one."""

    def __init__(self, failing: Collection[int] = (), poisoned: bool = False) -> None:
        self.recorded = 0
        self.replays = 0
        self.checked = 0
        self._failing = failing
        self._poisoned = poisoned

    def rehearse(self, body: Callable[[], None]) -> None:
        body()

    def capture(self, body: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        if self.recorded in self._failing:
            raise RuntimeError(f"operation not permitted when stream is capturing ({self.recorded})\nand a long trace")
        body()

        def replay() -> None:
            self.replays += 1
            body()

        return replay

    def require_usable(self) -> None:
        self.checked += 1
        if self._poisoned:
            raise RuntimeError("the device is beyond use")
