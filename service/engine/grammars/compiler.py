"""Compiles grammars beside the step loop. Until the first one comes, neither library nor tokenizer is loaded."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.engine.base import Matcher
from service.engine.grammars.forced import ForcedTokens

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from service.engine.grammars.matcher import Masks, TokenMatcher

COMPILING_THREADS = 2
"""Grammars compiled at once: a usual one takes a millisecond, and a large one must not have all others wait."""


def row_bytes(vocab_size: int) -> int:
    """Those of a row that says for each token of a vocabulary whether it is allowed: whole words of 32 bits."""
    return 4 * -(-vocab_size // 32)


class GrammarCompiler:
    """Grammars for the tokens of the checkpoint in `model_dir`, whose model scores `vocab_size` of them."""

    def __init__(self, model_dir: Path, vocab_size: int, threads: int) -> None:
        self._model_dir = model_dir
        self._vocab_size = vocab_size
        self._threads = threads
        self._pool = ThreadPoolExecutor(COMPILING_THREADS, thread_name_prefix="grammars")
        self._loading = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._masks: Masks | None = None

    def compile(self, grammar: str) -> Future[Matcher]:
        """The beginning of an answer in `grammar`, which may have a problem from the start. Raises ConfigurationError
        for a tokenizer that can't be read."""
        return self._pool.submit(self._compile, grammar)

    def allowed(self, matchers: "list[TokenMatcher | ForcedTokens]") -> NDArray[np.uint8]:
        """What each of `matchers` [N], one at least, may go on with: [N, bytes], a bit a token, the lowest first."""
        rows = np.empty((len(matchers), row_bytes(self._vocab_size)), np.uint8)
        in_grammars: list[tuple[int, TokenMatcher]] = []
        for at, each in enumerate(matchers):
            if isinstance(each, ForcedTokens):
                each.allow(rows[at])
            else:
                in_grammars.append((at, each))
        if in_grammars:
            assert self._masks is not None, "matchers come from `compile`"
            rows[[at for at, _ in in_grammars]] = self._masks.allowed([each for _, each in in_grammars])
        return rows

    def _compile(self, grammar: str) -> Matcher:
        from service.engine.grammars.matcher import TokenMatcher

        vocabulary, masks = self._load()
        matcher = TokenMatcher(vocabulary, grammar)
        if not matcher.problem:
            masks.begin(matcher)  # not while others wait: some problems show only here, and it takes longest
        return matcher

    def _load(self) -> "tuple[LLTokenizer, Masks]":
        from service.engine.grammars.matcher import Masks
        from service.engine.grammars.vocabulary import load_vocabulary

        with self._loading:
            if self._vocabulary is None or self._masks is None:
                self._masks = Masks(self._vocab_size, self._threads)
                self._vocabulary = load_vocabulary(self._model_dir, self._vocab_size)
            return self._vocabulary, self._masks
