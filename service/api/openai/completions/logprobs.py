"""Log-probabilities as completions of texts tell them: lists side by side, with places in the text."""

import codecs
import math
from collections.abc import Sequence

from service.api.openai.completions.completion import TextLogprobs
from service.chat.logprobs import Likelihood, TokenReport


class Columns:
    """Reports of one answer's tokens as they come; `decode_errors`: how its text was made (see `Generation`)."""

    def __init__(self, decode_errors: str) -> None:
        self._decode_errors = decode_errors
        self._decoder = codecs.getincrementaldecoder("utf-8")(decode_errors)
        self._characters = 0

    def of(self, tokens: Sequence[TokenReport]) -> TextLogprobs:
        """Those of further tokens."""
        return TextLogprobs.model_construct(  # looking at each of them again would take longer than making them
            tokens=[spelled(token) for token in tokens],
            token_logprobs=[None if math.isnan(token.logprob) else token.logprob for token in tokens],
            top_logprobs=[_likeliest(token) for token in tokens],
            text_offset=[self._offset(token) for token in tokens],
        )

    def _offset(self, token: TokenReport) -> int:
        data = bytes(token.bytes or [])
        before = self._characters + self._broken_off(data)
        self._characters += len(self._decoder.decode(data))
        return before

    def _broken_off(self, data: bytes) -> int:
        """Characters that stand for what was begun before `data`, where that does not go on with it."""
        begun, _ = self._decoder.getstate()
        if not begun or not data or _goes_on(begun, data[:1]):
            return 0
        return len(begun.decode("utf-8", self._decode_errors))


def _goes_on(begun: bytes, byte: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begun + byte)
    except UnicodeDecodeError:
        return False
    return True


def spelled(token: Likelihood) -> str:
    """A token's text; of one that is no whole characters its bytes, as OpenAI's API has them: others may look alike."""
    if token.bytes is None or token.token.encode() == bytes(token.bytes):
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def _likeliest(token: TokenReport) -> dict[str, float] | None:
    if math.isnan(token.logprob):
        return None
    return {spelled(each): each.logprob for each in (*token.top_logprobs, token)}
