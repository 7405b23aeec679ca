"""Where answers stand in their grammars, and the tokens that may come next."""

import time
from collections.abc import Callable

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from service.engine.grammars.schema import first_words, limits

SILENT = 0
"""The library's level of logging to standard error: what it would say there is part of somebody's answer."""

SLOW = 0.1
"""Seconds that masks may take: some steps of a GPU. Those of the worst schemas within `bounds` take a fifth of it."""
NOT_ALLOWED = "doesn't satisfy the grammar"
"""What the library says of a token that its mask had not allowed."""
TOO_SLOW = "it is too ambiguous, so that each token takes long to choose"


class TokenMatcher:
    """One answer's place in its grammar. `problem` says why it can't go on: its grammar, or a token that was wrong
    (`is_ours`: whoever sampled it did not look at its mask).

    Where an answer is complete, and only there, the stop ids are allowed; and they alone, where it can't go on.
    """

    def __init__(self, vocabulary: LLTokenizer, grammar: str) -> None:
        self.native = LLMatcher(vocabulary, grammar, log_level=SILENT, limits=limits())
        self._is_given_up = False
        self.is_ours = False
        self.problem = ""
        self.look()

    def advance(self, token: int) -> None:
        """The answer goes on with `token`."""
        was_well = not self.problem
        self.native.consume_token(token)
        self.look()
        self.is_ours = was_well and NOT_ALLOWED in self.problem

    def give_up(self) -> None:
        """The answer holds up all others."""
        self._is_given_up = True

    def look(self) -> None:
        """Note what the library says. Asked for at another time, by another thread, it would raise: it lets nobody near
        a matcher that is at work."""
        error = TOO_SLOW if self._is_given_up else first_words(self.native.get_error())
        self.problem = f"the answer's grammar cannot be kept to: {error}" if error else ""


class Masks:
    """What answers may go on with, worked out by `threads` threads over a vocabulary of `vocab_size` tokens.

    Every answer's next token waits for all masks. So when they are slow by the `clock`, the next ones are worked out
    one by one, and an answer whose own is slow is given up: by the time that its thread worked (`cpu`), since a busy
    machine is nobody's fault.
    """

    def __init__(
        self,
        vocab_size: int,
        threads: int,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._vocab_size = vocab_size
        self._executor = LLExecutor(threads)
        self._clock = clock
        self._cpu = cpu
        self._is_slow = False

    def begin(self, matcher: TokenMatcher) -> None:
        """Work out the first mask alone, for what is found out by it."""
        self._fill_and_judge(allocate_token_bitmask(1, self._vocab_size), 0, matcher)
        matcher.look()

    def allowed(self, matchers: list[TokenMatcher]) -> NDArray[np.uint8]:
        """What each of `matchers` [N] may go on with: [N, bytes], a bit a token, the lowest first."""
        words = allocate_token_bitmask(len(matchers), self._vocab_size)
        begun, looks_at_each = self._clock(), self._is_slow
        if looks_at_each:
            for at, each in enumerate(matchers):
                self._fill_and_judge(words, at, each)
        else:
            fill_next_token_bitmask_par(self._executor, [(each.native, at) for at, each in enumerate(matchers)], words)
        # One by one, even masks of which none is slow may take long.
        self._is_slow = not looks_at_each and self._clock() - begun > SLOW
        for each in matchers:
            each.look()
        return words.view(np.uint8)

    def _fill_and_judge(self, words: NDArray[np.int32], at: int, matcher: TokenMatcher) -> None:
        begun = self._cpu()
        fill_next_token_bitmask(matcher.native, words, at)
        if self._cpu() - begun > SLOW:
            matcher.give_up()
