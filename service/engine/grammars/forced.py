"""Answers that begin with tokens which are there already (teacher forcing): what the model makes of each is asked."""

import numpy as np
from numpy.typing import NDArray


class ForcedTokens:
    """A `Matcher`: the tokens that are left of those that an answer begins with. Behind them nothing is forbidden."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._at = 0
        self.problem = ""
        self.is_ours = False

    def advance(self, token: int) -> None:
        """The answer goes on with `token`."""
        expected = self._tokens[self._at] if self._at < len(self._tokens) else token
        self._at += 1
        if token != expected:
            self.problem, self.is_ours = f"the engine sampled {token} where only {expected} was allowed", True

    def allow(self, row: NDArray[np.uint8]) -> None:
        """Fill `row` [bytes] with what the answer may go on with: a bit a token, the lowest first."""
        if self._at >= len(self._tokens):
            row[:] = 0xFF
            return
        token = self._tokens[self._at]
        row[:] = 0
        row[token // 8] = 1 << token % 8
