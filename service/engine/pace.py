"""How much of a prompt a step may compute beside running streams, so that nobody's text stalls for a long prompt."""

from dataclasses import dataclass

TOKENS_AT_FIRST = 128
"""Prompt tokens beside decodes before anything was measured. Up to about 200 rows a step is bound by reading the
weights, which a decode reads anyway: 128 tokens of an 8B model are 2 TFLOP, 4 ms of an H100 beside a 6 ms decode."""
LEAST_TOKENS = 16
"""A prompt never stands still: at 30,000 tokens of context, 16 more cost under 1 ms of attention on an H100."""
ALLOWED = 0.8
"""Time that prompts may add to a step, in times of a decode alone: 1.8 in all leaves room below the promised 2."""
GROWTH = 1.1
"""Most the share grows from one step to the next: one step too far then still stays below 2."""
SMOOTHING = 0.2
"""Weight of the newest decode in the running mean of their times."""
CROWD, CROWD_SHARE = 4, 8
"""So many requests without a first token are a crowd, if they are one for so many that run: to wait costs them more
than longer steps cost the running ones."""
CROWD_TOKENS = 1024
"""Prompt tokens beside decodes for a crowd: three times a decode's time on an H100, half a full step's."""


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds of a decode of one sequence and of `most`, timed before serving."""

    of_one: float
    of_most: float
    most: int

    def of(self, decodes: int) -> float:
        """Between the two in proportion: the weights are read once, each sequence's KV for itself."""
        return self.of_one + (self.of_most - self.of_one) * (decodes - 1) / max(self.most - 1, 1)


class PrefillPace:
    """Learns from step times how many prompt tokens fit beside decodes. `most` bounds them from above.

    A mixed step may take 1 + ALLOWED times as long as decodes alone took lately. The next share follows from the last
    mixed step in proportion, so that growing context, whose attention costs more and more, shrinks it in time.
    `timed` stands in for decodes alone until there was one, so that a burst of prompts is learnt from, too.
    """

    def __init__(self, most: int, timed: DecodeTimes | None = None) -> None:
        self._most = most
        self._tokens = min(TOKENS_AT_FIRST, most)
        self._timed = timed
        self._alone: float | None = None

    def budget(self, decodes: int, awaiting: int) -> int:
        """Most prompt tokens of the next step beside `decodes`, when `awaiting` requests have no token yet."""
        if not decodes:
            return self._most
        is_crowd = awaiting >= max(CROWD, decodes // CROWD_SHARE)
        return max(self._tokens, min(CROWD_TOKENS, self._most)) if is_crowd else self._tokens

    def measured(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step took `seconds` of the device's time."""
        if not decodes:
            return
        if not prompt_tokens:
            self._alone = seconds if self._alone is None else self._alone + SMOOTHING * (seconds - self._alone)
            return
        alone = self._timed.of(decodes) if self._alone is None and self._timed else self._alone
        if alone is not None:
            self._adapt(prompt_tokens, seconds - alone, ALLOWED * alone)

    def _adapt(self, prompt_tokens: int, added: float, allowed: float) -> None:
        ratio = allowed / added if added > 0 else GROWTH
        fitting = int(prompt_tokens * min(ratio, GROWTH)) + (ratio > 1)
        # A step with less than its share says nothing against a larger one.
        if ratio < 1 or fitting > self._tokens:
            self._tokens = min(max(fitting, LEAST_TOKENS), self._most)
