"""Text to token ids and back. Made by `load_tokenizer`, whichever library does the work."""

from collections.abc import Iterator

from service.tokenizer.codec import Codec, alternatives
from service.tokenizer.detokenizer import Detokenizer
from service.tokenizer.settings import TokenizerSettings


class Tokenizer:
    """One checkpoint's tokenizer. Text never turns into special ids; only `token_id` gives those.

    Safe to use from several threads at once.
    """

    def __init__(self, codec: Codec, settings: TokenizerSettings) -> None:
        self.codec = codec
        self.settings = settings
        self.stop_ids: list[int] = list(settings.eos_ids)
        special = {token.content: token.id for token in codec.added.values() if token.special}
        self.special_ids = frozenset(special.values())
        self.special_tokens = special
        self.plain_tokens = tuple(token.content for token in codec.added.values() if not token.special)
        self.trimming_ids = frozenset(token.id for token in codec.added.values() if token.trims)
        self._special_pattern = alternatives(special)
        # The unknown token is special, but any text may need it.
        self._control_ids = self.special_ids - {special.get(settings.named.get("unk_token", ""))}
        self._ids = {token.content: token.id for token in codec.added.values()}
        self._special_names = {token_id: name for name, token_id in special.items()}

    @property
    def vocab_size(self) -> int:
        """Ids below it may have text; a model may have more rows than that, which never mean anything."""
        return len(self.codec.table)

    @property
    def decode_errors(self) -> str:
        """The codec error handler for bytes that are no UTF-8."""
        return self.codec.decode_errors

    def token_id(self, name: str) -> int | None:
        """The id of a special or added token, None if there is no such token."""
        return self._ids.get(name)

    def special_name(self, token: int) -> str:
        """What a special token is called; empty for any other."""
        return self._special_names.get(token, "")

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` as one run. The text of a special token in it stays text."""
        ids = self.codec.encode(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # The library's own vocabulary holds a special token's text, or another text for its id.
        return [piece for token in ids for piece in (self._spell(token) if token in self._control_ids else [token])]

    def split(self, text: str) -> Iterator[int | str]:
        """Trusted text as special ids and the runs between them. Never for what a user wrote."""
        parts = self._special_pattern.split(text) if self._special_pattern else [text]
        return (self.special_tokens.get(part, part) for part in parts if part)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; special ids and ids beyond the vocabulary have none."""
        detokenizer = Detokenizer(self)
        return detokenizer.push(ids) + detokenizer.flush()

    @property
    def trims_start(self) -> bool:
        """True if decoding strips all leading spaces, not only the one the tokenizer puts before a text."""
        return self.codec.trims_start

    def token_bytes(self, token: int, *, first: bool = False) -> bytes:
        """The UTF-8 bytes a token stands for; `first` drops the space the tokenizer puts before any text."""
        data = self.codec.table[token] if 0 <= token < len(self.codec.table) else b""
        if first and self.codec.dummy_prefix and data.startswith(b" ") and token not in self.codec.byte_ids:
            return data[1:]
        return data

    def _spell(self, token: int) -> list[int]:
        return [piece for piece in self.codec.spell(token) if piece not in self._control_ids]
