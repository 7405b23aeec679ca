"""Stop strings in a stream of text: nothing of a stop string is ever shown, whatever borders the chunks have."""

import re
from collections.abc import Sequence


class StopMatcher:
    """Passes text through up to the earliest stop string; what follows it is dropped.

    Earliest means the smallest start; of two that start together, the shorter. Only the longest suffix that may still
    become a stop string is held back, so the result does not depend on how the text was cut into chunks.
    Costs one step per character and stop string while a match may be under way, and a regex scan otherwise.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._progress = [_Progress(stop) for stop in dict.fromkeys(stops)]
        self._first_characters = (
            re.compile("[" + re.escape("".join({stop[0] for stop in stops})) + "]") if stops else None
        )
        self._held = ""
        self._match: tuple[int, str] | None = None  # start in the held text; an earlier one may still be under way
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that was found, or None."""
        return self._stopped

    def push(self, text: str) -> str:
        """Take new text in; returns the text that is now certain not to belong to a stop string."""
        if self._stopped is not None:
            return ""
        if self._first_characters is None:
            return text
        position = len(self._held)
        self._held += text
        return self._scan(position)

    def flush(self) -> str:
        """The text ends here; returns what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        if self._match is not None:
            start, self._stopped = self._match
            return held[:start]
        return held

    def _scan(self, position: int) -> str:
        while position < len(self._held):
            if self._match is None and self._idle():
                position = self._next_candidate(position)
                if position == len(self._held):
                    break
            self._advance(position)
            position += 1
            if self._match is not None and self._match[0] <= self._pending(position):
                return self.flush()
        return self._release(self._pending(len(self._held)))

    def _idle(self) -> bool:
        return not any(progress.length for progress in self._progress)

    def _next_candidate(self, position: int) -> int:
        assert self._first_characters is not None
        found = self._first_characters.search(self._held, position)
        return found.start() if found else len(self._held)

    def _advance(self, position: int) -> None:
        for progress in self._progress:
            if progress.advance(self._held[position]):
                found = (position + 1 - len(progress.stop), progress.stop)
                # A shorter one that starts at the same place was found before this one.
                if self._match is None or found[0] < self._match[0]:
                    self._match = found

    def _pending(self, end: int) -> int:
        """The earliest place where a stop string may still be under way, `end` if nowhere."""
        return end - max(progress.length for progress in self._progress)

    def _release(self, end: int) -> str:
        # A match waits for one that began before it, so it lies in the part that stays.
        safe, self._held = self._held[:end], self._held[end:]
        if self._match is not None:
            self._match = (self._match[0] - end, self._match[1])
        return safe


class _Progress:
    """How much of one stop string the text ends with, kept up to date character by character (Knuth, Morris, Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._fallback = _borders(stop)

    def advance(self, character: str) -> bool:
        """Take one character in; True if it completes the stop string."""
        length = self.length
        while length and self.stop[length] != character:
            length = self._fallback[length]
        if self.stop[length] == character:
            length += 1
        complete = length == len(self.stop)
        self.length = 0 if complete else length  # a second match of the same string begins later and does not count
        return complete


def _borders(stop: str) -> list[int]:
    """For the length of every proper prefix, the longest shorter prefix that it also ends with."""
    borders = [0, 0]
    length = 0
    for character in stop[1:-1]:
        while length and stop[length] != character:
            length = borders[length]
        if stop[length] == character:
            length += 1
        borders.append(length)
    return borders
