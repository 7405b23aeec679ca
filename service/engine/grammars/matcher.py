"""Where answers stand in their grammars, and the tokens that may come next."""

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from service.engine.grammars.schema import first_words, limits

SILENT = 0
"""The library's level of logging to standard error: what it would say there is part of somebody's answer."""


class TokenMatcher:
    """One answer's place in its grammar. `problem` says why it can't go on: its grammar, or a token that was wrong.

    Where an answer is complete, and only there, the stop ids are allowed; and they alone, where it can't go on.
    """

    def __init__(self, vocabulary: LLTokenizer, grammar: str) -> None:
        self.native = LLMatcher(vocabulary, grammar, log_level=SILENT, limits=limits())
        self.problem = ""
        self.look()

    def advance(self, token: int) -> None:
        """The answer goes on with `token`."""
        self.native.consume_token(token)
        self.look()

    def look(self) -> None:
        """Note what the library says. Asked for at another time, by another thread, it would raise: it lets nobody near
        a matcher that is at work."""
        error = first_words(self.native.get_error())
        self.problem = f"the answer's grammar cannot be kept to: {error}" if error else ""


def allowed_tokens(executor: LLExecutor, vocab_size: int, matchers: list[TokenMatcher]) -> NDArray[np.uint8]:
    """What each of `matchers` [N] may go on with: [N, bytes], a bit a token, the lowest first."""
    words = allocate_token_bitmask(len(matchers), vocab_size)
    fill_next_token_bitmask_par(executor, [(each.native, at) for at, each in enumerate(matchers)], words)
    for each in matchers:
        each.look()
    return words.view(np.uint8)
