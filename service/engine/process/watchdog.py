"""Is the engine making progress? Judged from its heartbeats alone; the clock is a parameter."""

from dataclasses import dataclass

HEARTBEAT_INTERVAL = 1.0
"""Seconds between two heartbeats of the engine process."""


@dataclass(slots=True)
class Watchdog:
    """What was heard last of the engine, and when. Times are readings of `time.monotonic()`, in seconds.

    Past the limits the engine is stuck; past `FATAL_FACTOR` times the step limit it is beyond hope and is replaced.
    """

    step_timeout: float
    heartbeat_timeout: float
    heard: float
    step_age: float = 0.0

    FATAL_FACTOR = 2

    def beat(self, now: float, step_age: float) -> None:
        """A heartbeat came: the engine's step had been running for `step_age` seconds."""
        self.heard, self.step_age = now, step_age

    def progress(self, now: float) -> None:
        """A step's result came."""
        self.heard, self.step_age = now, 0.0

    def complaint(self, now: float) -> str:
        """Why the engine counts as stuck; empty while it does not."""
        if (silence := now - self.heard) > self.heartbeat_timeout:
            return f"the engine process gave no sign of life for {silence:.0f} s"
        if (age := self._age(now)) > self.step_timeout:
            return f"a step of the engine has been running for {age:.0f} s, longer than {self.step_timeout:g} s"
        return ""

    def hopeless(self, now: float) -> bool:
        """True when the engine has been stuck for so long that it should be killed and started again."""
        limit = self.FATAL_FACTOR * self.step_timeout
        return self._age(now) > limit or now - self.heard > max(limit, self.heartbeat_timeout)

    def _age(self, now: float) -> float:
        return self.step_age + (now - self.heard) if self.step_age else 0.0
