"""Tiny tokenizers in directories shaped like real checkpoints: InternLM3's, its translation, and a byte-level one."""

import io
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

PAIRS = ("restate", "planning", "recollect", "execution", "review", "summarize", "retry", "conclude")
INTERNLM3_SPECIAL = (
    *(mark for name in PAIRS for mark in (f"<{name}>", f"</{name}>")),
    *("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"),
)
"""InternLM3's additional_special_tokens in the order of their ids."""

PADDING_ROWS = 379
"""Rows of InternLM3's embedding that no token has: 128133 to 128511."""


def corpus() -> Iterator[str]:
    """Sentences enough to learn some merges from."""
    for number in range(300):
        yield f"The quick brown fox {number} jumps over the lazy dog, says the assistant to a user of system {number}."
        yield f"你好，世界 {number}！请用中文回答用户的问题。上海人工智能实验室。"
        yield f"def function_{number}(x): return x ** {number}  # a  comment   with    spaces"


@cache
def sentencepiece_model(
    *,
    dummy_prefix: bool = True,
    user_defined: Sequence[str] = (),
    rule: str = "identity",
    remove_extra_whitespaces: bool = False,
    byte_fallback: bool = True,
) -> bytes:
    """A BPE model of 600 pieces, normalized as Llama's unless told otherwise."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=out,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=byte_fallback,
        add_dummy_prefix=dummy_prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=remove_extra_whitespaces,
        user_defined_symbols=list(user_defined),
        character_coverage=0.9995,
        num_threads=1,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    return out.getvalue()


def processor(model: bytes) -> Any:
    """sentencepiece itself on that model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def update_json(file: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    write_json(file, {key: value for key, value in content.items() if value is not None})


def added_token(content: str, **flags: bool) -> dict[str, object]:
    """An entry of added_tokens_decoder."""
    unset = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **unset, **flags}


def write_sentencepiece_dir(
    directory: Path, *, model: bytes | None = None, chat_template: str | None = None, **options: Any
) -> Path:
    """A directory like InternLM3-8B-Instruct's: tokenizer.model, special tokens behind its pieces, rows to spare."""
    directory.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(**options) if model is None else model
    (directory / "tokenizer.model").write_bytes(model)
    pieces = processor(model)
    first = pieces.get_piece_size()
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    # A model that knows a special token as a piece of its own keeps its id; the others follow behind the pieces.
    names |= {pieces.piece_to_id(name) or first + at: name for at, name in enumerate(INTERNLM3_SPECIAL)}
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    tokenizer_config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": True,
        "added_tokens_decoder": {str(token): added_token(name) for token, name in names.items()},
        "additional_special_tokens": list(INTERNLM3_SPECIAL),
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "InternLM3Tokenizer",
        **named,
    }
    write_json(directory / "tokenizer_config.json", {k: v for k, v in tokenizer_config.items() if v is not None})
    write_json(directory / "special_tokens_map.json", {**named, "additional_special_tokens": list(INTERNLM3_SPECIAL)})
    end_of_turn = next(token for token, name in names.items() if name == "<|im_end|>")
    write_json(
        directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": [2, end_of_turn], "pad_token_id": 2}
    )
    write_json(directory / "config.json", {"eos_token_id": 2, "vocab_size": first + len(names) - 3 + PADDING_ROWS})
    return directory


def write_translation(directory: Path, *, prefix: bool = True) -> None:
    """Write the tokenizer.json that says what tokenizer.model says; without `prefix` it forgets the dummy prefix."""
    model = processor((directory / "tokenizer.model").read_bytes())
    pieces = [model.id_to_piece(token) for token in range(model.get_piece_size())]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    translation = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(model, pieces), byte_fallback=True, unk_token="<unk>", fuse_unk=True
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    translation.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    translation.decoder = decoders.Sequence(steps)
    names = ["<unk>", "<s>", "</s>", *INTERNLM3_SPECIAL]
    translation.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in names])
    translation.save(str(directory / "tokenizer.json"))


def _merges(model: Any, pieces: list[str]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two, the better piece first: the order in which sentencepiece merges."""
    known = set(pieces)
    ranked = sorted((-model.get_score(token), token) for token in range(len(pieces)) if len(pieces[token]) > 1)
    splits = ((pieces[token][:at], pieces[token][at:]) for _, token in ranked for at in range(1, len(pieces[token])))
    return [(left, right) for left, right in splits if left in known and right in known]


SMOLLM2_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>")

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@cache
def byte_level_json() -> str:
    """A byte-level BPE of 500 tokens with SmolLM2's special tokens and pre-tokenizers."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SMOLLM2_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return str(tokenizer.to_str())


def write_byte_level_dir(directory: Path, *, chat_template: str | None = SMOLLM2_TEMPLATE) -> Path:
    """A directory like SmolLM2-135M-Instruct's: tokenizer.json, bos <|im_start|>, eos <|im_end|>."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(byte_level_json(), encoding="utf-8")
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    write_json(
        directory / "tokenizer_config.json",
        named
        | {"tokenizer_class": "PreTrainedTokenizerFast"}
        | ({"chat_template": chat_template} if chat_template else {}),
    )
    write_json(directory / "generation_config.json", {"eos_token_id": 2})
    return directory


def split_special(text: str) -> list[str]:
    """`text` cut at InternLM3's special tokens, which are kept: what transformers does before it tokenizes."""
    names = sorted(("<unk>", "<s>", "</s>", *INTERNLM3_SPECIAL), key=len, reverse=True)
    return [part for part in re.split(f"({'|'.join(map(re.escape, names))})", text) if part]
