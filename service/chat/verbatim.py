"""Prompts that are no conversation: the model goes on with them as they are."""

from collections.abc import Iterator
from typing import NamedTuple

from service.chat.token_ids import require_known
from service.errors import InvalidRequest
from service.tokenizer.tokenizer import Tokenizer


class Verbatim(NamedTuple):
    """A text, or token ids. In a text the name of a special token is that token: whoever sends one writes the model's
    markup. `begins`: a text has the bos token first where the tokenizer's settings ask for it."""

    content: str | list[int]
    begins: bool = True

    @property
    def characters(self) -> int:
        """That are to be tokenized."""
        return len(self.content) if isinstance(self.content, str) else 0

    def encode(self, tokenizer: Tokenizer, vocab_size: int, field: str) -> list[int]:
        """The prompt's tokens, each below `vocab_size`: the model has no others.

        Raises InvalidRequest, which names `field`, for no token at all and for those that cannot be read as they stand.
        """
        if not isinstance(self.content, str):
            _require_tokens(self.content, vocab_size, field)
            return self.content
        ids = [token for run in tokenizer.split(self.content) for token in _encoded(run, tokenizer, field)]
        bos = tokenizer.token_id(tokenizer.settings.named.get("bos_token", ""))
        if self.begins and tokenizer.settings.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        _require_tokens(ids, vocab_size, field)
        return ids


def _encoded(run: int | str, tokenizer: Tokenizer, field: str) -> Iterator[int]:
    if isinstance(run, str):
        yield from tokenizer.encode_text(run)
    elif run in tokenizer.trimming_ids:
        name = tokenizer.special_name(run)
        raise InvalidRequest(f"{name} swallows what stands beside it; leave it out, or send token ids", field=field)
    else:
        yield run


def _require_tokens(ids: list[int], vocab_size: int, field: str) -> None:
    if not ids:
        raise InvalidRequest("the prompt has no token to go on from; send some text", field=field)
    require_known(ids, vocab_size, field)
