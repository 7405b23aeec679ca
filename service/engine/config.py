"""A checkpoint's `config.json` as the numbers the model needs; whatever this architecture is not is refused here.

InternLM3 and Llama share their layers. Which projections carry a bias differs: InternLM3's own code gives q, k and v
the flag `qkv_bias`, and o_proj and the MLP the flag `bias`; Llama's `attention_bias` covers q, k, v and o.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, UnknownModel

MODEL_TYPES = ("internlm3", "llama")
CONSTANT_ROPE_TYPES = ("default", "dynamic")
"""RoPE types whose frequencies are constant up to max_position_embeddings; dynamic NTK changes them only beyond it."""
DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes and constants of one checkpoint. `max_positions` is the longest sequence with constant RoPE."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied_head: bool

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> list[tuple[int, int]]:
        """[out, in] of a layer's, fused: QKV, output, gate and up, down."""
        return [
            (self.query_size + 2 * self.kv_size, self.hidden_size),
            (self.hidden_size, self.query_size),
            (2 * self.intermediate_size, self.hidden_size),
            (self.hidden_size, self.intermediate_size),
        ]


INTERNLM3_8B = ModelConfig(
    vocab_size=128_512,
    hidden_size=4096,
    intermediate_size=10_240,
    num_layers=48,
    num_heads=32,
    num_kv_heads=2,
    head_dim=128,
    max_positions=32_768,
    rms_norm_eps=1e-5,
    rope_theta=5e7,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_head=False,
)
"""What `read_config` reads of InternLM3-8B-Instruct."""


def read_config(model_dir: Path) -> ModelConfig:
    """The configuration in `model_dir/config.json`.

    Raises ConfigurationError when the file is missing or unreadable, lacks a key, or describes another architecture.
    """
    path = model_dir / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no readable model configuration ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{path}: a JSON object is expected")
    problems = [*_wrong_numbers(raw), *_wrong_tables(raw), *_unsupported(raw)]
    if problems:
        raise UnknownModel(f"{path}: {'; '.join(problems)}")
    config = _parse(raw)
    _check_shapes(path, config)
    return config


QUANTIZED = (
    "quantized checkpoints are not supported; use the unquantized one, which INTERNLM_QUANTIZATION=int8 quantizes when "
    "it is read"
)
COUNTS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
ROPE_TABLES = ("rope_scaling", "rope_parameters")
"""transformers 4 wrote the first, 5 writes the second, which wins where both are there."""
OPTIONAL_COUNTS = ("num_key_value_heads", "head_dim")
"""Left out or null, they follow from the others."""


def _wrong_numbers(raw: dict[str, Any]) -> list[str]:
    given = [key for key in OPTIONAL_COUNTS if raw.get(key) is not None]
    wrong = [key for key in (*COUNTS, *given) if not _is_positive(raw.get(key), int)]
    given_or_default = {"rms_norm_eps": raw.get("rms_norm_eps"), "rope_theta": _rope(raw)["rope_theta"]}
    wrong += [key for key, value in given_or_default.items() if not _is_positive(value, int, float)]
    return [f"a positive number is needed for {key}, not {given_or_default.get(key, raw.get(key))!r}" for key in wrong]


def _is_positive(value: Any, *kinds: type) -> bool:
    # By its very type: to isinstance, true is the number 1. JSON can name numbers that no float holds.
    return type(value) in kinds and bool(0 < value <= sys.float_info.max)


def _wrong_tables(raw: dict[str, Any]) -> list[str]:
    wrong = [key for key in ROPE_TABLES if raw.get(key) and not isinstance(raw[key], dict)]
    return [f"an object is needed for {key}, not {raw[key]!r}" for key in wrong]


def _unsupported(raw: dict[str, Any]) -> list[str]:
    """Everything that would make these layers compute something else than the checkpoint was trained for."""
    rope = _rope(raw)
    checks = (
        (raw.get("model_type") in MODEL_TYPES, f"model_type {raw.get('model_type')!r} is not one of {MODEL_TYPES}"),
        (raw.get("hidden_act", "silu") == "silu", f"hidden_act {raw.get('hidden_act')!r} is not 'silu'"),
        (raw.get("quantization_config") is None, QUANTIZED),
        (_rope_type(rope) in CONSTANT_ROPE_TYPES, f"rope type {_rope_type(rope)!r} is not in {CONSTANT_ROPE_TYPES}"),
        (rope.get("partial_rotary_factor", 1.0) == 1.0, "partial_rotary_factor other than 1 is not supported"),
    )
    return [problem for holds, problem in checks if not holds]


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """RoPE settings under either of their names."""
    settings = {
        "rope_theta": raw.get("rope_theta") or DEFAULT_ROPE_THETA,
        "partial_rotary_factor": raw.get("partial_rotary_factor", 1.0),
    }
    for table in (raw.get(key) for key in ROPE_TABLES):
        settings |= table if isinstance(table, dict) else {}
    return settings


def _rope_type(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _parse(raw: dict[str, Any]) -> ModelConfig:
    attention, mlp = bool(raw.get("attention_bias", False)), bool(raw.get("mlp_bias", False))
    is_llama = raw["model_type"] == "llama"
    return ModelConfig(
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=int(raw["num_attention_heads"]),
        num_kv_heads=int(raw.get("num_key_value_heads") or raw["num_attention_heads"]),
        head_dim=int(raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]),
        max_positions=int(raw["max_position_embeddings"]),
        rms_norm_eps=float(raw["rms_norm_eps"]),
        rope_theta=float(_rope(raw)["rope_theta"]),
        qkv_bias=attention if is_llama else bool(raw.get("qkv_bias", attention)),
        o_bias=attention if is_llama else bool(raw.get("bias", mlp)),
        mlp_bias=mlp if is_llama else bool(raw.get("bias", mlp)),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
    )


def _check_shapes(path: Path, config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads:
        raise ConfigurationError(
            f"{path}: num_attention_heads {config.num_heads} is not a multiple of "
            f"num_key_value_heads {config.num_kv_heads}"
        )
    if not config.head_dim:
        raise ConfigurationError(f"{path}: hidden_size {config.hidden_size} is less than {config.num_heads} heads need")
    if config.head_dim % 2:
        raise ConfigurationError(f"{path}: head_dim {config.head_dim} is odd; RoPE rotates pairs")
