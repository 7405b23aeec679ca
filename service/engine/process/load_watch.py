"""Does a load get anywhere? Judged from its heartbeats and its length; the clock is a parameter.

Steps are the watchdog's to judge (watchdog.py); a load has none.
"""

import math
from dataclasses import dataclass

LOAD_FACTOR = 5
"""How many times the first load another one may take: the page cache may be gone, and the volume busy."""


@dataclass(frozen=True, slots=True)
class LoadWatch:
    """One load that began at `began`, a reading of `time.monotonic()`. Past a limit, in seconds, it is beyond hope.

    `silence`: without a heartbeat. `limit`: in all; infinite for the first load, which the startup probe judges.
    """

    began: float
    silence: float
    limit: float = math.inf

    def complaint(self, now: float, heard: float, phase: str) -> str:
        """Why the load should be ended; empty while it should not. `heard`: when the last heartbeat came."""
        if (silent := now - heard) > self.silence:
            return f"the engine process gave no sign of life for {silent:.0f} s while loading ({phase})"
        if (took := now - self.began) > self.limit:
            return f"loading took more than {self.limit:.0f} s; after {took:.0f} s it was at: {phase}"
        return ""


def limit_after(first_load: float | None, least: float) -> float:
    """Seconds that a load may take when the first one took `first_load`; None: there was none yet."""
    return math.inf if first_load is None else max(least, LOAD_FACTOR * first_load)
