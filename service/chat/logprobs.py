"""What a client that asks for log-probabilities is told of an answer's tokens, each beside the text that it gave.

Dataclasses in the form in which they are sent: there are up to twenty-one for each token of an answer, and nobody else
is served while they are made or copied.
"""

from collections import deque
from dataclasses import dataclass
from itertools import starmap

from service.engine.base import Logprobs
from service.tokenizer.tokenizer import Tokenizer


@dataclass(slots=True)
class Likelihood:
    """A token in some place of an answer, and the natural logarithm of its probability as the model gives it: before
    penalties, bias, temperature and filters. No number (NaN) for a prompt's first token, which comes after nothing.

    Half a character is U+FFFD in `token`, and what it is in `bytes`. A special token has no bytes and goes by its name.
    """

    token: str
    logprob: float
    bytes: list[int] | None


@dataclass(slots=True)
class TokenReport(Likelihood):
    """A token of the answer, and the likeliest ones in its place, in order."""

    top_logprobs: list[Likelihood]


class Spelling:
    """How tokens are written in reports. Each is worked out once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[tuple[int, bool], tuple[str, list[int] | None]] = {}  # no more than twice the vocabulary

    def of(self, token: int, *, first: bool) -> tuple[str, list[int] | None]:
        """A token's text and bytes; `first`: an answer begins with it."""
        known = self._known.get((token, first))
        if known is None:
            known = self._known[token, first] = self._spelled(token, first)
        return known

    def _spelled(self, token: int, first: bool) -> tuple[str, list[int] | None]:
        data = self._tokenizer.token_bytes(token, first=first)
        if not data and (name := self._tokenizer.special_name(token)):
            return name, None
        return data.decode("utf-8", self._tokenizer.decode_errors), list(data)


class Reporter:
    """Reports of one answer's tokens, which wait until their text is handed on."""

    def __init__(self, spelling: Spelling) -> None:
        self._spelling = spelling
        self._waiting: deque[tuple[int, TokenReport]] = deque()

    def push(self, token: int, logprobs: Logprobs, *, first: bool, at: int) -> None:
        """The answer goes on with `token` behind so many characters, and begins with it if it is the `first` one."""

        def likelihood(other: int, value: float) -> Likelihood:
            text, data = self._spelling.of(other, first=first)
            return Likelihood(text, value, data)

        text, data = self._spelling.of(token, first=first)
        likeliest = list(starmap(likelihood, zip(logprobs.tokens, logprobs.values, strict=True)))
        self._waiting.append((at, TokenReport(text, logprobs.own, data, likeliest)))

    def take(self, characters: int) -> list[TokenReport]:
        """Those that begin within the first so many characters, which are handed on now."""
        taken = []
        while self._waiting and self._waiting[0][0] < characters:
            taken.append(self._waiting.popleft()[1])
        return taken

    def take_all(self) -> list[TokenReport]:
        """Those that are left when the answer is whole."""
        taken = [report for _, report in self._waiting]
        self._waiting.clear()
        return taken
