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
"""Waiting requests are a crowd from CROWD on, if there is one for every CROWD_SHARE running ones: waiting then costs
them more than longer steps cost the running ones."""
CROWD_TOKENS = 1024
"""Prompt tokens beside decodes for a crowd: three times a decode's time on an H100."""
LONG_PROMPT = 4096
"""A longer prompt has no more than its pace's share in a crowd: up to here a crowd's step takes a third longer at most
for its attention. At 30,000 tokens of context it takes three times as long, and the crowd gains nothing by it."""


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Seconds of a decode of one sequence and of `most`, timed before serving."""

    of_one: float
    of_most: float
    most: int

    def of(self, decodes: int) -> float:
        """Between the two in proportion: the weights are read once, each sequence's KV for itself."""
        return self.of_one + (self.of_most - self.of_one) * (decodes - 1) / max(self.most - 1, 1)


def is_long(prompt_length: int) -> bool:
    """Whether a prompt of so many tokens is one that others may pass."""
    return prompt_length > LONG_PROMPT


@dataclass(slots=True)
class PromptBudget:
    """Prompt tokens that a step still has: `tokens` in all, of which `of_long` ones for prompts of any length, and
    `kept` ones for long prompts if no short one wants them."""

    tokens: int
    of_long: int
    kept: int = 0

    def keep_half(self) -> None:
        """Keep half of what long prompts may have for short ones."""
        self.kept = self.of_long // 2
        self.of_long -= self.kept

    def release(self) -> None:
        """Give long prompts what short ones have left of what was kept for them."""
        self.of_long = min(self.of_long + self.kept, self.tokens)
        self.kept = 0

    def grant(self, prompt_length: int, wanted: int) -> int:
        """Take up to `wanted` tokens for a prompt that is so long in all: for a short one first out of what no long one
        may have, or short ones that pass could keep a long one waiting for ever."""
        granted = min(wanted, self.of(prompt_length))
        self.tokens -= granted
        self.of_long = min(self.of_long - granted if is_long(prompt_length) else self.of_long, self.tokens)
        return granted

    def of(self, prompt_length: int) -> int:
        """What is left for a prompt that is so long in all."""
        return min(self.tokens, self.of_long) if is_long(prompt_length) else self.tokens


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

    def budget(self, decodes: int, awaiting: int) -> PromptBudget:
        """Most prompt tokens of the next step beside `decodes`, when `awaiting` requests have no token yet."""
        if not decodes:
            return PromptBudget(self._most, self._most)
        is_crowd = awaiting >= max(CROWD, decodes // CROWD_SHARE)
        tokens = max(self._tokens, min(CROWD_TOKENS, self._most)) if is_crowd else self._tokens
        return PromptBudget(tokens, self._tokens)

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
        # A small step that fits does not lower the share; a crowd's step raises it to TOKENS_AT_FIRST at most.
        if ratio < 1 or fitting > self._tokens:
            grown = min(int(self._tokens * GROWTH) + 1, TOKENS_AT_FIRST, self._most)
            most = self._most if prompt_tokens <= self._tokens else max(self._tokens, grown)
            self._tokens = min(max(fitting, LEAST_TOKENS), most)
