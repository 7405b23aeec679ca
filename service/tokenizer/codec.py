"""What both tokenizer libraries are to us: plain text to ids, and what bytes an id stands for."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from service.tokenizer.settings import AddedToken

SPACE = "▁"  # how SentencePiece writes a space


class Codec(Protocol):
    """Plain text to ids and back, with special tokens neither looked for nor skipped.

    `file`: what it was read from. `added`: all added tokens. `table`: each id's bytes, b"" for what has no text.
    `dummy_prefix`: the tokenizer puts a space before every text. `trims_start`: decoding strips all leading spaces, not
    only that one. `byte_ids`: ids of single bytes; a space among them is part of the text, never the tokenizer's own.
    `decode_errors`: the error handler for bytes that are no UTF-8.
    """

    file: Path
    added: dict[str, AddedToken]
    table: list[bytes]
    dummy_prefix: bool
    trims_start: bool
    byte_ids: frozenset[int]
    decode_errors: str

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which only added tokens that are not special are recognised."""
        ...

    def decode_by_library(self, ids: list[int]) -> str:
        """What the library itself makes of `ids`; the measure for `table`."""
        ...

    def spell(self, token: int) -> list[int]:
        """The ids of a token's text, character by character, none of which is the token."""
        ...


def alternatives(names: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern whose split() keeps the names it splits at; the longest wins. None if there are no names."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, ordered)) + ")") if ordered else None


def overlay(table: list[bytes], added: Iterable[AddedToken]) -> list[bytes]:
    """`table` with added tokens in it: their own text, or none for special ones. It grows to hold their ids."""
    for token in added:
        table += [b""] * (token.id + 1 - len(table))
        table[token.id] = b"" if token.special else token.content.encode()
    return table
