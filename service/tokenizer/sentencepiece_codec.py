"""Directories with a SentencePiece model: sentencepiece itself does the work, so ids are exact by construction."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from service.errors import ConfigurationError
from service.tokenizer.codec import SPACE, alternatives, overlay
from service.tokenizer.detokenizer import REPLACE_EACH_BYTE
from service.tokenizer.settings import AddedToken, TokenizerSettings


class SentencePieceCodec:
    """tokenizer.model, encoded by sentencepiece itself."""

    decode_errors = REPLACE_EACH_BYTE

    def __init__(self, file: Path, settings: TokenizerSettings) -> None:
        self.file = file
        self._model = _load_sentencepiece(file)
        # A model that removes extra white space reads any number of spaces at the start as none.
        self.trims_start = self._model.decode([self._model.piece_to_id(SPACE)] * 2) == ""
        self.dummy_prefix = self.trims_start or self._model.encode("a", out_type=str)[0].startswith(SPACE)
        self.byte_ids = frozenset(i for i in range(len(self._model)) if self._model.is_byte(i))
        self.added = {token.content: token for token in self._added_tokens(settings)}
        self._plain = {token.content: token.id for token in self.added.values() if not token.special}
        self._plain_pattern = alternatives(self._plain)
        self.table = self._table()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which only added tokens that are not special are recognised."""
        if self._plain_pattern is None:
            return list(self._model.encode(text))
        ids: list[int] = []
        for part in self._plain_pattern.split(text):
            ids += [self._plain[part]] if part in self._plain else self._model.encode(part)
        return ids

    def decode_by_library(self, ids: list[int]) -> str:
        """What sentencepiece makes of `ids`."""
        return str(self._model.decode([i for i in ids if i < len(self._model)]))

    def spell(self, token: int) -> list[int]:
        """The ids of a piece's text, character by character."""
        ids: list[int] = []
        for character in self._model.id_to_piece(token):
            found = self._model.piece_to_id(character)
            ids += [found] if found != self._model.unk_id() else self._spell_bytes(character)
        return ids

    def _spell_bytes(self, character: str) -> list[int]:
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def _added_tokens(self, settings: TokenizerSettings) -> Iterator[AddedToken]:
        """Those the settings list by id, and special ones that are only named but stand in the model."""
        yield from settings.added
        listed = {token.content for token in settings.added}
        for content in settings.special:
            token_id = self._model.piece_to_id(content)
            known = self._model.id_to_piece(token_id) == content
            if content not in listed and known:
                yield AddedToken(content, token_id, special=True)

    def _table(self) -> list[bytes]:
        table = [self._piece_bytes(token) for token in range(len(self._model))]
        return overlay(table, self.added.values())

    def _piece_bytes(self, token: int) -> bytes:
        if self._model.is_control(token) or self._model.is_unknown(token):
            return b""
        piece: str = self._model.id_to_piece(token)
        return bytes([int(piece[3:5], 16)]) if token in self.byte_ids else piece.replace(SPACE, " ").encode()


def _load_sentencepiece(file: Path) -> Any:
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(f"{file} cannot be read as a SentencePiece model: {error}") from error
