"""transformers' own route from messages to ids, as users of the checkpoints get it: the measure for our prompts."""

from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast


class ReferenceTokenizer(PreTrainedTokenizer):
    """A SentencePiece tokenizer in transformers: it splits at added tokens, sentencepiece does each run between."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012 - transformers declares it so
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **options: Any) -> None:
        self.model = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**options)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        return {self.model.id_to_piece(i): i for i in range(self.vocab_size)} | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(self.model.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.model.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.model.id_to_piece(index))


@cache
def _reference(directory: Path) -> Any:
    kind = ReferenceTokenizer if (directory / "tokenizer.model").is_file() else PreTrainedTokenizerFast
    return kind.from_pretrained(directory)


def apply_chat_template(directory: Path, messages: list[dict[str, str]]) -> list[int]:
    """The ids that transformers gives for a conversation, ready for the next answer."""
    encoding = _reference(directory).apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return list(encoding["input_ids"])
