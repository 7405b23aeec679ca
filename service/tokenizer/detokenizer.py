"""Token ids to text while they arrive: no half characters, and the same text however the ids are cut into batches."""

import codecs
from collections.abc import Iterable
from typing import Protocol

REPLACE_EACH_BYTE = "internlm_chat.replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


# SentencePiece writes one U+FFFD for each byte that is no UTF-8, Python's own "replace" one for each broken character.
codecs.register_error(REPLACE_EACH_BYTE, _replace_each_byte)


class TokenBytes(Protocol):
    """What a detokenizer asks of a tokenizer."""

    @property
    def decode_errors(self) -> str:
        """The codec error handler for bytes that are no UTF-8."""
        ...

    @property
    def trims_start(self) -> bool:
        """True if decoding strips all leading spaces, not only the one the tokenizer puts before a text."""
        ...

    def token_bytes(self, token: int, *, first: bool = False) -> bytes:
        """The UTF-8 bytes a token stands for, b"" if it has no text; `first` drops what a text's beginning adds."""
        ...


class Detokenizer:
    """The text of one answer, piece by piece; joined, the pieces are `Tokenizer.decode` of all ids.

    A character whose bytes are spread over tokens is held back until its last byte came; bytes that can no longer
    become a character come out as U+FFFD at once. Constant time for each token.
    `continues`: they are no text of their own but go on within another, so that no space at their start is left out.
    """

    def __init__(self, tokenizer: TokenBytes, *, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(tokenizer.decode_errors)
        self.at_start = not continues  # no text has come yet

    def push(self, ids: Iterable[int]) -> str:
        """Take new ids in; returns the text that is now final. Special ids give none."""
        return self._decoder.decode(b"".join(map(self._bytes, ids)))

    def flush(self) -> str:
        """The answer ends here; returns U+FFFD for bytes that were held back."""
        return self._decoder.decode(b"", final=True)

    def _bytes(self, token: int) -> bytes:
        data = self._tokenizer.token_bytes(token)
        if self.at_start and data:
            data = self._tokenizer.token_bytes(token, first=True)
            self.at_start = not data and self._tokenizer.trims_start
        return data
