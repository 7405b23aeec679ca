"""What a client that asks for log-probabilities is told of an answer's tokens, each beside the text that it gave."""

from typing import NamedTuple

from service.engine.base import Logprobs
from service.tokenizer.tokenizer import Tokenizer


class Likelihood(NamedTuple):
    """A token in some place of an answer: its text, where half a character is U+FFFD and a special token its name; its
    bytes, None for one that has no text; and the natural logarithm of its probability."""

    text: str
    data: bytes | None
    logprob: float


class TokenReport(NamedTuple):
    """A token of the answer, and the likeliest ones in its place, in order."""

    own: Likelihood
    likeliest: list[Likelihood]


class Reporter:
    """Reports of one answer's tokens, which wait for the text that they are part of."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[TokenReport] = []

    def push(self, token: int, logprobs: Logprobs, *, first: bool) -> None:
        """The answer goes on with `token`, and begins with it if it is the `first` one."""
        others = zip(logprobs.tokens, logprobs.values, strict=True)
        likeliest = [self._likelihood(other, value, first) for other, value in others]
        self._waiting.append(TokenReport(self._likelihood(token, logprobs.own, first), likeliest))

    def take(self) -> list[TokenReport]:
        """Those that wait: their text is handed on now."""
        taken, self._waiting = self._waiting, []
        return taken

    def _likelihood(self, token: int, value: float, first: bool) -> Likelihood:
        data = self._tokenizer.token_bytes(token, first=first)
        if not data and (name := self._tokenizer.special_name(token)):
            return Likelihood(name, None, value)
        return Likelihood(data.decode("utf-8", self._tokenizer.decode_errors), data, value)
