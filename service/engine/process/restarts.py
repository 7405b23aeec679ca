"""When a dead engine is started again, and when not any more."""

from dataclasses import dataclass


@dataclass(slots=True)
class RestartPolicy:
    """Exponential back-off. Gives up after `attempts` starts in a row that never got ready.

    An engine that dies soon after it got ready is always started again, ever more slowly; one that served for
    `steady` seconds is forgiven its past. All in seconds.
    """

    first_delay: float = 0.5
    longest_delay: float = 30.0
    attempts: int = 5
    steady: float = 60.0
    _deaths: int = 0
    _failed_starts: int = 0

    def delay_after_death(self, served: float | None) -> float | None:
        """Seconds to wait before the next start; None to give up. `served`: time since ready, None if never ready."""
        self._failed_starts = 0 if served is not None else self._failed_starts + 1
        if self._failed_starts >= self.attempts:
            return None
        self._deaths = 1 if served is not None and served >= self.steady else self._deaths + 1
        return float(min(self.longest_delay, self.first_delay * 2.0 ** min(self._deaths - 1, 30)))
