"""Grammars for a `ContentRunner`'s answers: what may follow is a rule over the answer so far."""

import numpy as np
from numpy.typing import NDArray

from tests.support.runner import VOCAB

END = 0


def may_follow(output: list[int]) -> list[int]:
    """Sums of tokens: what follows is divisible by 7 after an even sum, by 11 after an odd one; after six, the end."""
    if len(output) >= 6:
        return [END]
    return [token for token in range(1, VOCAB) if token % (11 if sum(output) % 2 else 7) == 0]


class Rule:
    """A matcher of `may_follow`, which breaks after so many tokens."""

    def __init__(self, breaks_after: int = 1000) -> None:
        self.output: list[int] = []
        self._breaks_after = breaks_after

    is_ours = False

    @property
    def problem(self) -> str:
        return "the rule is broken" if len(self.output) >= self._breaks_after else ""

    def advance(self, token: int) -> None:
        assert token in may_follow(self.output), "the core gave a token that was not allowed"
        self.output.append(token)


def allowed(rules: list[Rule]) -> NDArray[np.uint8]:
    """`Allowed` of rules."""
    rows = np.zeros((len(rules), -(-VOCAB // 8) * 8), dtype=np.uint8)
    for row, rule in zip(rows, rules, strict=True):
        assert not rule.problem, "asked of an answer that has ended"
        row[may_follow(rule.output)] = 1
    return np.packbits(rows, axis=1, bitorder="little")
