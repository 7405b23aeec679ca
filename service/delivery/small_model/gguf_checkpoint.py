"""A Llama model in a GGUF file, written as the directory an InternLM3 checkpoint is: config, safetensors, tokenizer."""

import json
from pathlib import Path
from typing import Any

import gguf

from service.delivery.disk.durable import sync
from service.delivery.reporting.progress import Progress
from service.delivery.small_model.gguf_tokenizer import END_OF_TURN, special_tokens, tokenizer_config, write_tokenizer
from service.delivery.small_model.gguf_weights import write_weights
from service.errors import ConfigurationError

Metadata = dict[str, Any]
"""GGUF's keys and values as Python objects, e.g. `llama.block_count`: 30."""


def convert_gguf(file: Path, directory: Path, progress: Progress) -> None:
    """Write `directory` from the GGUF `file` and sync it to disk. Raises ConfigurationError unless it is a Llama."""
    reader = gguf.GGUFReader(file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if metadata["general.architecture"] != "llama":
        raise ConfigurationError(f"{file.name} holds a {metadata['general.architecture']} model; only llama is known")
    directory.mkdir(exist_ok=True)
    config = model_config(metadata, tied="output.weight" not in {tensor.name for tensor in reader.tensors})
    write_weights(reader.tensors, config, directory / "model.safetensors", progress)
    write_tokenizer(metadata, directory / "tokenizer.json")
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation_config(metadata))
    _write_json(directory / "tokenizer_config.json", tokenizer_config(metadata))
    for path in (*directory.iterdir(), directory):
        sync(path)


def model_config(metadata: Metadata, tied: bool) -> dict[str, Any]:
    """config.json with InternLM3's keys; `tied` says that the output head is the embedding."""
    heads = metadata["llama.attention.head_count"]
    return {
        "architectures": ["InternLM3ForCausalLM"],
        "model_type": "internlm3",
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": metadata.get("llama.attention.key_length", metadata["llama.embedding_length"] // heads),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": _decimal(metadata["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": _decimal(metadata.get("llama.rope.freq_base", 10_000.0)),
        # InternLM3's own: no effect up to max_position_embeddings, beyond which nothing is served.
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "qkv_bias": False,
        "bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        **special_ids(metadata),
        "use_cache": True,
    }


def special_ids(metadata: Metadata) -> dict[str, int]:
    """The ids of bos, eos and pad; eos, as in InternLM3, where no token is named for padding."""
    eos = metadata["tokenizer.ggml.eos_token_id"]
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": eos,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", eos),
    }


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """generation_config.json: every id that ends an answer, the model's eos first."""
    ids = special_ids(metadata)
    specials = {token: index for index, token in special_tokens(metadata)}
    ends = [ids["eos_token_id"], *(specials[token] for token in END_OF_TURN if token in specials)]
    return ids | {"eos_token_id": list(dict.fromkeys(ends))}


def _decimal(value: float) -> float:
    """The number that was meant: GGUF keeps 1e-05 as a float32, 9.99999974e-06."""
    return float(f"{value:.7g}")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
