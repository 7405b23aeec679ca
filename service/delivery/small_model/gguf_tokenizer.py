"""The byte-level BPE in a GGUF file as the tokenizer.json and tokenizer_config.json of a checkpoint."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence

from service.errors import ConfigurationError

END_OF_TURN = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end an answer: the chat format's, and the one the base model learned for the end of a document."""
CONTROL_TOKEN = 3
"""llama.cpp's LLAMA_TOKEN_TYPE_CONTROL."""


def special_tokens(metadata: dict[str, Any]) -> list[tuple[int, str]]:
    """Id and text of every control token, ids ascending."""
    pairs = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    return [(index, token) for index, (token, kind) in enumerate(pairs) if kind == CONTROL_TOKEN]


def write_tokenizer(metadata: dict[str, Any], file: Path) -> None:
    """Write tokenizer.json. Raises ConfigurationError for a pre-tokenizer other than SmolLM's."""
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    left_right = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=left_right))
    tokenizer.pre_tokenizer = _pre_tokenizer(metadata)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for _, token in special_tokens(metadata)]
    )
    tokenizer.save(str(file))


def tokenizer_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the chat template and the names of the special tokens."""
    tokens = metadata["tokenizer.ggml.tokens"]
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in roles.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": bool(metadata.get("tokenizer.ggml.add_space_prefix", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata["llama.context_length"],
        "chat_template": metadata["tokenizer.chat_template"],
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    }


def _pre_tokenizer(metadata: dict[str, Any]) -> PreTokenizer:
    kind = (metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ConfigurationError(f"the GGUF file has a tokenizer of kind {kind}; only SmolLM's is known")
    # GPT-2's byte-level BPE, but every digit a token of its own (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
