"""A checkpoint's tokens as the library wants them: what bytes each one adds to an answer."""

from pathlib import Path

from llguidance import LLTokenizer, TokenizerWrapper

from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer

FORCED_AT_ONCE = 256
"""Characters that are tokenized of a text that is forced. The library asks again at every token of it."""
CUT = 16
"""Tokens before a cut that are left out: the cut may have made them what they are."""
LONGEST = 32
"""Bytes that are looked for as one token where a text has to be spelled."""
ANCHOR = "\n"
"""Text that comes before another one when that is tokenized as the middle of an answer: a tokenizer may put a space
before the first text it sees."""


def load_vocabulary(model_dir: Path, vocab_size: int) -> LLTokenizer:
    """The tokens of the checkpoint in `model_dir`, of which the model scores `vocab_size`. Takes about a second.

    Raises ConfigurationError when its tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(model_dir)
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer, vocab_size)), vocab_size, tokenizer.stop_ids)


class _Vocabulary:
    """What `TokenizerWrapper` asks for. Special tokens go by their names, which the library tells from text: a grammar
    allows those whose ids it names, and the stop ids."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id = tokenizer.stop_ids[0]
        self.bos_token_id = None
        self._texts = [*tokenizer.codec.table, *[b""] * (vocab_size - tokenizer.vocab_size)][:vocab_size]
        self.special_token_ids = sorted(token for token in tokenizer.special_ids if token < vocab_size)
        self.tokens = [*self._texts]
        for token in self.special_token_ids:  # without bytes of their own they would pass for any text
            self.tokens[token] = tokenizer.special_name(token).encode()
        self._tokenizer = tokenizer
        self._ids = {data: token for token, data in reversed([*enumerate(self._texts)]) if data}
        self._anchor = tokenizer.encode_text(ANCHOR)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text within an answer, or of its beginning: those that the model knows it by, if they mean the
        text exactly."""
        ids = self._ids_of(text[:FORCED_AT_ONCE])
        return ids if len(text) <= FORCED_AT_ONCE else ids[:-CUT]

    def _ids_of(self, text: str) -> list[int]:
        ids = self._tokenizer.encode_text(ANCHOR + text)
        cut = len(self._anchor)
        data = text.encode()
        is_known = ids[:cut] == self._anchor and max(ids) < len(self._texts)
        if is_known and b"".join(self._texts[token] for token in ids[cut:]) == data:
            return ids[cut:]
        return self._spell(data)

    def _spell(self, data: bytes) -> list[int]:
        """The longest tokens first; bytes that no token has are left out, and then asked of the model."""
        ids: list[int] = []
        at = 0
        while at < len(data):
            pieces = (data[at : at + length] for length in range(min(LONGEST, len(data) - at), 0, -1))
            piece = next((piece for piece in pieces if piece in self._ids), b"")
            if not piece:
                return ids
            ids.append(self._ids[piece])
            at += len(piece)
        return ids
