"""A small repository with the files a hub has for InternLM3: valid headers, random weights, and what nobody wants."""

import hashlib
import json
import random
import struct
from pathlib import Path

CONFIG = {
    "architectures": ["InternLM3ForCausalLM"],
    "model_type": "internlm3",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50_000_000,
    "torch_dtype": "bfloat16",
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
UNWANTED = ("modeling_internlm3.py", "pytorch_model.bin", ".gitattributes", "figures/chart.png", "training.pkl")


def make_repository(
    directory: Path, shard_bytes: tuple[int, int] = (300_000, 200_000), seed: int = 0, **config: object
) -> Path:
    """Wanted and unwanted files; two shards with about `shard_bytes` of data; `config` replaces keys of config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 131], "pad_token_id": 2}))
    (directory / "tokenizer.model").write_bytes(random.Random(seed).randbytes(5000))
    (directory / "README.md").write_text("# 书生·浦语\n")
    weight_map = {}
    for number, (name, size) in enumerate(zip(SHARDS, shard_bytes, strict=True)):
        write_shard(directory / name, size, f"layer.{number}", seed + number)
        weight_map[f"layer.{number}"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in UNWANTED:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(b"import os; os.abort()\n")
    return directory


def write_shard(path: Path, size: int, tensor: str, seed: int, *, sparse: bool = False) -> None:
    """A safetensors file with one bfloat16 tensor of `size` bytes (even), random or a hole in the disk."""
    shape = [size // 2]
    header = json.dumps({tensor: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if sparse:
            file.truncate(8 + len(header) + size)
        else:
            file.write(random.Random(seed).randbytes(size))


def sha256_of(path: Path) -> str:
    """By the standard library's own loop, independent of the code under test."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wanted_files(repository: Path) -> dict[str, str]:
    """Name and SHA-256 of what a download must bring."""
    files = (path.name for path in repository.iterdir() if path.is_file())
    names = {name for name in files if name not in UNWANTED and not name.startswith(".internlm-")}
    return {name: sha256_of(repository / name) for name in sorted(names)}
