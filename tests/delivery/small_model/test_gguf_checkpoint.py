"""A GGUF file becomes a directory that transformers, knowing nothing of GGUF, loads as InternLM3."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from service.delivery.small_model.gguf_checkpoint import convert_gguf
from service.delivery.small_model.gguf_weights import checkpoint_name, unpermute
from service.errors import ConfigurationError
from tests.support import tiny_gguf
from tests.support.tiny_gguf import write_gguf

Reports = list[tuple[str, int, int]]


def convert(tmp_path: Path, **kind: Any) -> Path:
    write_gguf(tmp_path / "tiny.gguf", **kind)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model", lambda *_: None)
    return tmp_path / "model"


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def test_the_directory_holds_a_checkpoint_others_may_read(tmp_path: Path) -> None:
    model = convert(tmp_path)
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in model.iterdir()} == names
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in model.iterdir())


def test_the_config_has_internlm3s_keys(tmp_path: Path) -> None:
    config = read(convert(tmp_path) / "config.json")
    assert config["model_type"] == "internlm3"
    assert config["architectures"] == ["InternLM3ForCausalLM"]
    assert (config["qkv_bias"], config["bias"], config["tie_word_embeddings"]) == (False, False, True)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 8)
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (32, 64, 2)
    assert config["vocab_size"] == len(tiny_gguf.VOCABULARY)
    assert config["max_position_embeddings"] == tiny_gguf.CONTEXT
    assert config["rms_norm_eps"] == 1e-05
    assert config["rope_theta"] == 100_000.0
    assert config["rope_scaling"] == {"factor": 6.0, "rope_type": "dynamic"}
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_every_token_that_ends_an_answer_is_named_the_models_eos_first(tmp_path: Path) -> None:
    assert read(convert(tmp_path) / "generation_config.json")["eos_token_id"] == [2, 0]


def test_the_weights_are_the_files_unpermuted_and_in_bfloat16(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "tiny.gguf")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model", lambda *_: None)
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert len(written) == len(stored)
    for name, values in stored.items():
        heads = {"attn_q": tiny_gguf.HEADS, "attn_k": tiny_gguf.KV_HEADS}.get(name.split(".")[-2])
        expected = torch.from_numpy(unpermute(values, heads) if heads else np.array(values)).to(torch.bfloat16)
        assert torch.equal(written[checkpoint_name(name)], expected), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_answers_as_transformers_own_reading_of_the_gguf_file(tmp_path: Path, tied: bool) -> None:
    model_dir = convert(tmp_path, tied=tied)
    assert type(AutoConfig.from_pretrained(model_dir)).__name__ == "InternLM3Config"
    ours = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    tokens = torch.arange(40).unsqueeze(0) + 3
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(weight.bfloat16().float())
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_progress_counts_the_tensors(tmp_path: Path) -> None:
    reports: Reports = []
    tensors = len(write_gguf(tmp_path / "tiny.gguf"))
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model", lambda *report: reports.append(report))
    assert reports == [("converting", number, tensors) for number in range(1, tensors + 1)]


@pytest.mark.parametrize(
    ("kind", "named"),
    [({"architecture": "qwen2"}, "qwen2"), ({"pre": "llama-bpe"}, "llama-bpe")],
    ids=["model", "tokenizer"],
)
def test_another_kind_of_file_is_refused_by_its_name(tmp_path: Path, kind: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        convert(tmp_path, **kind)


TEXTS = [
    "hello world",
    " hello",
    "Hello,\tWORLD\r\n",
    "你好，世界",
    "🎉👍🏽",
    "",
    "<|im_start|>user\nhello<|im_end|>\n",
    "\x00\x07",
    "it's",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_equals_transformers_own_reading_and_loses_nothing(tmp_path: Path, text: str) -> None:
    ours = AutoTokenizer.from_pretrained(convert(tmp_path))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ours.encode(text, add_special_tokens=False)) == text


def test_the_tokenizer_knows_its_special_tokens_and_the_chat_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(convert(tmp_path))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert tokenizer.chat_template == tiny_gguf.CHAT_TEMPLATE
    assert tokenizer.encode("<|im_end|>") == [2]
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    assert tokenizer.model_max_length == tiny_gguf.CONTEXT


def test_no_torch_and_no_transformers_is_imported_by_the_conversion(tmp_path: Path) -> None:
    imported = "service.delivery.small_model.gguf_checkpoint, service.delivery.small_model.smollm2"
    code = f"import sys, {imported}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "service.engine"} & set(loaded)


def test_a_start_that_finds_the_model_does_not_pay_for_the_converters_imports() -> None:
    code = "import sys, service.delivery.small_model.smollm2; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"gguf", "numpy", "tokenizers"} & set(loaded)
