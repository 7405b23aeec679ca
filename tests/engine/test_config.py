"""Reading config.json: what is taken from it, and what is refused because the layers would compute something else."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.engine.config import INTERNLM3_8B, ModelConfig, read_config
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, config_of

PUBLISHED = {
    "architectures": ["InternLM3ForCausalLM"],
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 10240,
    "max_position_embeddings": 32768,
    "model_type": "internlm3",
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "qkv_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128512,
}


def read(directory: Path, raw: dict[str, Any]) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(raw))
    return read_config(directory)


def test_the_published_configuration_of_internlm3_8b_is_read(tmp_path: Path) -> None:
    """Whole: kernels are compiled ahead for the constant."""
    assert read(tmp_path, PUBLISHED) == INTERNLM3_8B


@pytest.mark.parametrize(
    ("keys", "biases"),
    [
        ({"qkv_bias": True, "bias": False}, (True, False, False)),
        ({"qkv_bias": False, "bias": True}, (False, True, True)),
        ({"qkv_bias": True, "bias": True}, (True, True, True)),
        ({"model_type": "llama", "attention_bias": True, "mlp_bias": False}, (True, True, False)),
        ({"model_type": "llama", "attention_bias": False, "mlp_bias": True}, (False, False, True)),
        ({"model_type": "llama", "qkv_bias": True, "bias": True}, (False, False, False)),
    ],
)
def test_each_bias_flag_covers_what_its_architecture_says(
    tmp_path: Path, keys: dict[str, Any], biases: tuple[bool, bool, bool]
) -> None:
    config = read(tmp_path, PUBLISHED | keys)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == biases


def test_biases_as_transformers_saves_them_are_understood(tmp_path: Path) -> None:
    raw = {key: value for key, value in PUBLISHED.items() if key not in {"qkv_bias", "bias"}}
    config = read(tmp_path, raw | {"attention_bias": True, "mlp_bias": True})
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e4, "rope_scaling": None},
        {"rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        {"rope_theta": None, "rope_scaling": None},
    ],
)
def test_rope_is_read_in_every_spelling(tmp_path: Path, rope: dict[str, Any]) -> None:
    assert read(tmp_path, PUBLISHED | rope).rope_theta == 1e4


def test_a_null_for_how_the_weights_are_quantized_says_that_they_are_not(tmp_path: Path) -> None:
    assert read(tmp_path, PUBLISHED | {"quantization_config": None}) == INTERNLM3_8B


@pytest.mark.parametrize("null", [{}, {"head_dim": None, "num_key_value_heads": None}], ids=["absent", "null"])
def test_head_sizes_that_are_left_out_follow_from_the_others(tmp_path: Path, null: dict[str, None]) -> None:
    raw = {key: value for key, value in PUBLISHED.items() if key not in {"head_dim", "num_key_value_heads"}}
    config = read(tmp_path, raw | {"model_type": "llama"} | null)
    assert (config.head_dim, config.num_kv_heads) == (128, 32)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope type 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope type 'linear'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads 5"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"num_key_value_heads": -1}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": "128"}, "head_dim"),
        ({"rms_norm_eps": True}, "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_theta": "abc"}, "rope_theta, not 'abc'"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta, not None"),
        ({"rope_scaling": "linear"}, "an object is needed for rope_scaling, not 'linear'"),
        ({"head_dim": None, "num_attention_heads": 8192}, "hidden_size 4096 is less than 8192 heads need"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as refusal:
        read(tmp_path, PUBLISHED | change)
    assert str(tmp_path / "config.json") in refusal.value.message


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        read(tmp_path, PUBLISHED | {"model_type": "gpt2", "hidden_act": "gelu"})
    assert "gpt2" in refusal.value.message
    assert "gelu" in refusal.value.message


@pytest.mark.parametrize(
    "content", [None, b"{", b"[1]", b"\xff\xfe", pytest.param(b"[" * 100_000, id="lists without an end")]
)
def test_a_directory_without_a_readable_configuration_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        read_config(tmp_path)


def test_the_tests_own_checkpoints_have_the_published_keys() -> None:
    assert config_of(Shape()).keys() >= PUBLISHED.keys()
