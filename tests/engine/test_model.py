"""The native layers against transformers' own, on random checkpoints of every head grouping and bias combination."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.config import ModelConfig
from service.engine.generate import load_model
from service.engine.kernels.torch_ops import add_rms_norm, rotate_and_cache
from service.engine.model import rope_tables
from tests.support.checkpoints import Shape, config_of, tensors_of, write_checkpoint
from tests.support.plans import load_native, logits_of

CPU = torch.device("cpu")
PROMPT = [3, 300, 17, 17, 5, 256, 0, 319, 44, 90, 91, 2, 1, 8, 60, 200, 33]

GROUPINGS = [
    Shape(heads=16, kv_heads=1, head_dim=16),
    Shape(heads=4, kv_heads=1),
    Shape(heads=4, kv_heads=4, tied=True),
    Shape(heads=9, kv_heads=3, hidden=72, tied=True),
    Shape(heads=4, kv_heads=2, qkv_bias=True, bias=True),
    Shape(heads=16, kv_heads=1, qkv_bias=True, bias=True, tied=True, shards=2),
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def native_logits(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return logits_of(load_native(directory, dtype), PROMPT, dtype)


@torch.inference_mode()
def reference_logits(directory: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    logits: torch.Tensor = load_model(directory, CPU, dtype)(torch.tensor([PROMPT])).logits[0].float()
    return logits


@pytest.mark.parametrize("shape", GROUPINGS, ids=lambda shape: shape.name)
def test_logits_equal_transformers_in_fp32(tmp_path: Path, shape: Shape) -> None:
    write_checkpoint(tmp_path, shape)
    torch.testing.assert_close(native_logits(tmp_path), reference_logits(tmp_path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", GROUPINGS[:2], ids=lambda shape: shape.name)
def test_logits_are_near_transformers_in_bfloat16(tmp_path: Path, shape: Shape) -> None:
    write_checkpoint(tmp_path, shape)
    native, reference = native_logits(tmp_path, torch.bfloat16), reference_logits(tmp_path, torch.bfloat16)
    exact = reference_logits(tmp_path)
    # Both round; ours must not be farther from the exact logits than transformers is, but for chance.
    assert (native - exact).square().mean() <= 1.5 * (reference - exact).square().mean()


@pytest.mark.parametrize(("qkv_bias", "bias"), [(True, False), (False, True)])
def test_one_bias_without_the_other_equals_llama_with_zero_biases(tmp_path: Path, qkv_bias: bool, bias: bool) -> None:
    """transformers refuses this combination, but its Llama can say the same with zeros in place of what is absent."""
    shape = Shape(qkv_bias=qkv_bias, bias=bias)
    write_checkpoint(tmp_path / "native", shape)
    tensors = tensors_of(shape)
    for name in tensors_of(Shape(qkv_bias=True, bias=bias)):
        if ".self_attn." in name:
            weight = tensors[name.replace(".bias", ".weight")]
            tensors.setdefault(name, torch.zeros(weight.shape[0]))
    for layer in range(shape.layers):
        tensors.setdefault(f"model.layers.{layer}.self_attn.o_proj.bias", torch.zeros(shape.hidden))
    llama: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "auto_map": {}}
    llama |= {"attention_bias": True, "mlp_bias": bias}
    write_checkpoint(tmp_path / "llama", shape, tensors=tensors, **llama)
    torch.testing.assert_close(
        native_logits(tmp_path / "native"), reference_logits(tmp_path / "llama"), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        native_logits(tmp_path / "llama"), reference_logits(tmp_path / "llama"), rtol=1e-4, atol=1e-4
    )


def test_a_bias_changes_the_logits(tmp_path: Path) -> None:
    """Guards the tests above: were biases lost on both sides, they would agree."""
    biased, plain = Shape(qkv_bias=True, bias=True), Shape()
    tensors = {name: tensor for name, tensor in tensors_of(biased).items() if not name.endswith(".bias")}
    write_checkpoint(tmp_path / "biased", biased)
    write_checkpoint(tmp_path / "plain", plain, tensors=tensors)
    assert not torch.allclose(native_logits(tmp_path / "biased"), native_logits(tmp_path / "plain"), atol=0.1)


def small_config(**changes: Any) -> ModelConfig:
    numbers = config_of(Shape())
    values: dict[str, Any] = {
        "vocab_size": numbers["vocab_size"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_positions": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e7,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "tied_head": False,
    }
    return ModelConfig(**(values | changes))


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """x [head_dim] as the key at `position`, read back from the cache."""
    cos, sin = rope_tables(small_config(head_dim=16), 200, torch.empty(0, dtype=torch.float64))
    cache = torch.zeros(2, 1, 1, 1, 16, dtype=torch.float64)
    qkv = x.repeat(1, 3)
    rotate_and_cache(qkv, cos, sin, torch.tensor([position]), torch.tensor([0]), cache[0], cache[1])
    assert torch.equal(qkv[0, :16], cache[0, 0, 0, 0]), "query and key turn alike"
    assert torch.equal(cache[1, 0, 0, 0], x), "values do not turn"
    return cache[0, 0, 0, 0]


def test_rotation_depends_on_distances_only() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(query_at: int, key_at: int) -> torch.Tensor:
        return rotated(q, query_at) @ rotated(k, key_at)

    torch.testing.assert_close(score(57, 50), score(107, 100), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(score(57, 50), score(57, 40), rtol=1e-3)


def test_the_norm_takes_its_variance_in_fp32() -> None:
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # 300 squared overflows fp16
    normed, _ = add_rms_norm(x, None, torch.ones(64, dtype=torch.float16), 1e-5)
    assert torch.equal(normed, torch.ones(1, 64, dtype=torch.float16))
