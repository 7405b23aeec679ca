"""How much of a prompt a step may compute beside running streams, so that nobody's text stalls for a long prompt."""

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
CROWD = 4
"""From so many requests that wait for their first token, more than run, the waiting ones come first."""


class PrefillPace:
    """Learns from step times how many prompt tokens fit beside decodes. `most` bounds them from above.

    A mixed step may take 1 + ALLOWED times as long as decodes alone took lately. The next share follows from the last
    mixed step in proportion, so that growing context, whose attention costs more and more, shrinks it in time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._tokens = min(TOKENS_AT_FIRST, most)
        self._alone: float | None = None

    def budget(self, decodes: int, awaiting: int) -> int:
        """Most prompt tokens of the next step beside `decodes`, when `awaiting` requests have no token yet."""
        is_crowd = awaiting >= CROWD and awaiting > decodes
        return self._tokens if decodes and not is_crowd else self._most

    def measured(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """A step took `seconds` of the device's time."""
        if not decodes:
            return
        if not prompt_tokens:
            self._alone = seconds if self._alone is None else self._alone + SMOOTHING * (seconds - self._alone)
        elif self._alone is not None:
            self._adapt(prompt_tokens, seconds - self._alone, ALLOWED * self._alone)

    def _adapt(self, prompt_tokens: int, added: float, allowed: float) -> None:
        ratio = allowed / added if added > 0 else GROWTH
        fitting = int(prompt_tokens * min(ratio, GROWTH)) + (ratio > 1)
        # A step with less than its share says nothing against a larger one.
        if ratio < 1 or fitting > self._tokens:
            self._tokens = min(max(fitting, LEAST_TOKENS), self._most)
