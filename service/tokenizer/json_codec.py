"""Directories with a tokenizer.json: the tokenizers library encodes, a table made from its vocabulary decodes."""

import json
from pathlib import Path
from typing import Any

import tokenizers

from service.errors import ConfigurationError
from service.tokenizer.codec import SPACE, overlay
from service.tokenizer.detokenizer import REPLACE_EACH_BYTE
from service.tokenizer.settings import AddedToken, TokenizerSettings


class JsonCodec:
    """tokenizer.json with a byte-level decoder (GPT-2, SmolLM2) or SentencePiece's (Llama with byte fallback).

    Raises ConfigurationError for other decoders, and for a tokenizer that encodes a run of text differently when it
    stands after a special token: the runs of a prompt are encoded one by one.
    """

    def __init__(self, file: Path, settings: TokenizerSettings) -> None:
        self.file = file
        self._library = _load_library(file, settings)
        self.added = {token.content: token for token in _added_tokens(self._library, settings)}
        self._refuse_dependence_on_position()
        self._library.encode_special_tokens = True  # from here on their text is plain text
        self._vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=False)
        decoder = json.loads(self._library.to_str())["decoder"]
        byte_level = _is_byte_level(decoder, file)
        self.decode_errors = "replace" if byte_level else REPLACE_EACH_BYTE
        self.dummy_prefix = not byte_level and any(step["type"] == "Strip" for step in decoder["decoders"])
        self.trims_start = False
        # The Strip decoder takes any first space, that of a byte token too.
        self.byte_ids: frozenset[int] = frozenset()
        self.table = self._table(byte_level)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which only added tokens that are not special are recognised."""
        # As a batch of one: `encode` holds the interpreter's lock all the while, and computes offsets nobody asks for.
        (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=False)
        return list(encoding.ids)

    def decode_by_library(self, ids: list[int]) -> str:
        """What the library makes of `ids`."""
        return str(self._library.decode(ids, skip_special_tokens=True))

    def spell(self, token: int) -> list[int]:
        """The ids of a token's text, character by character; characters the vocabulary lacks are left out."""
        text = self._library.id_to_token(token) or ""
        return [self._vocabulary[character] for character in text if character in self._vocabulary]

    def _table(self, byte_level: bool) -> list[bytes]:
        table = [b""] * (max(self._vocabulary.values(), default=-1) + 1)
        for piece, token in self._vocabulary.items():
            table[token] = _byte_level_bytes(piece) if byte_level else _sentencepiece_bytes(piece)
        return overlay(table, self.added.values())

    def _refuse_dependence_on_position(self) -> None:
        marker = next((token for token in self.added.values() if token.special and not token.trims), None)
        if marker is None:
            return
        alone = self.encode("a")
        if self.encode(f"a{marker.content}a") != [*alone, marker.id, *alone]:
            raise ConfigurationError(
                f'{self.file} encodes "a" differently after {marker.content}: such a pre-tokenizer is not supported'
            )


def _load_library(file: Path, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    try:
        library = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigurationError(f"{file} cannot be read as a tokenizer: {error}") from error
    # A file may carry the settings of its training run; they would cut prompts without a word.
    library.no_truncation()
    library.no_padding()
    # What the settings name as special is special, whatever the file says of it.
    names = [name for name in settings.special if library.token_to_id(name) is not None]
    library.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    return library


def _added_tokens(library: tokenizers.Tokenizer, settings: TokenizerSettings) -> list[AddedToken]:
    """Those of tokenizer.json; the settings' own list must agree with it."""
    listed = {
        token.content: AddedToken(
            token.content, token_id, token.special, token.lstrip or token.rstrip or token.single_word
        )
        for token_id, token in library.get_added_tokens_decoder().items()
    }
    for token in settings.added:
        found = library.token_to_id(token.content)
        if found != token.id:
            raise ConfigurationError(
                f"{token.content} is id {token.id} in tokenizer_config.json but {found} in tokenizer.json "
                f"({settings.directory}); the two files belong to different models"
            )
    return list(listed.values())


def _is_byte_level(decoder: dict[str, Any] | None, file: Path) -> bool:
    """True for GPT-2's decoder, False for SentencePiece's. Raises ConfigurationError for any other."""
    steps = [step["type"] for step in (decoder or {}).get("decoders", [decoder] if decoder else [])]
    if steps == ["ByteLevel"]:
        return True
    if steps and steps[0] == "Replace" and set(steps) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return False
    raise ConfigurationError(f"{file} has a decoder of {steps or 'no'} steps; only byte-level and SentencePiece's work")


def _sentencepiece_bytes(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace(SPACE, " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """The byte each character stands for (GPT-2): printable Latin-1 for itself, U+0100 and on for the rest in turn."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()


def _byte_level_bytes(piece: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in piece])
    except KeyError:  # not written in the alphabet: the library takes such a piece as it is
        return piece.encode()
