"""GGUF tensors become the checkpoint's: names, rotation order and the bits of bfloat16."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.delivery.small_model.gguf_weights import checkpoint_name, to_bfloat16, unpermute
from service.errors import ConfigurationError
from tests.support.tiny_gguf import permute

NAMES = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ("blk.7.attn_q.weight", "model.layers.7.self_attn.q_proj.weight"),
    ("blk.7.attn_k.weight", "model.layers.7.self_attn.k_proj.weight"),
    ("blk.7.attn_v.weight", "model.layers.7.self_attn.v_proj.weight"),
    ("blk.29.attn_output.weight", "model.layers.29.self_attn.o_proj.weight"),
    ("blk.29.ffn_norm.weight", "model.layers.29.post_attention_layernorm.weight"),
    ("blk.3.ffn_gate.weight", "model.layers.3.mlp.gate_proj.weight"),
    ("blk.3.ffn_up.weight", "model.layers.3.mlp.up_proj.weight"),
    ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
]


@pytest.mark.parametrize(("gguf_name", "expected"), NAMES)
def test_tensors_get_their_checkpoint_names(gguf_name: str, expected: str) -> None:
    assert checkpoint_name(gguf_name) == expected


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "rope_freqs.weight", "blk.0", "blk.0.attn_q_norm.weight"]
)
def test_a_tensor_of_another_architecture_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        checkpoint_name(name)


def test_unpermuting_a_small_head_puts_the_halves_back_together() -> None:
    stored = np.array([[0], [4], [1], [5], [2], [6], [3], [7]], dtype=np.float32)
    assert unpermute(stored, 1).ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert unpermute(stored, 2).ravel().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


@given(heads=st.integers(1, 5), half=st.integers(1, 8), columns=st.integers(1, 6))
def test_unpermuting_undoes_what_llama_cpp_does(heads: int, half: int, columns: int) -> None:
    weight = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    assert np.array_equal(unpermute(permute(weight, heads), heads), weight)


def _rotate_pairs(vector: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    even, odd = vector[0::2], vector[1::2]
    turned = np.stack([even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles)])
    return turned.T.ravel()


def _rotate_halves(vector: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    first, second = np.split(vector, 2)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
    )


def test_unpermuted_weights_attend_under_half_rotation_as_stored_ones_under_pair_rotation() -> None:
    random = np.random.default_rng(1)
    dim, hidden = 16, 24
    query, key = (random.normal(size=(dim, hidden)).astype(np.float32) for _ in range(2))
    x, y = random.normal(size=(2, hidden))
    frequencies = 1 / 100_000 ** (np.arange(dim // 2) / (dim // 2))
    stored = _rotate_pairs(query @ x, 5 * frequencies) @ _rotate_pairs(key @ y, 2 * frequencies)
    ours = _rotate_halves(unpermute(query, 1) @ x, 5 * frequencies) @ _rotate_halves(
        unpermute(key, 1) @ y, 2 * frequencies
    )
    assert ours == pytest.approx(stored)


ROUNDING = [
    (0x3F800000, 0x3F80, "one is exact"),
    (0x80000000, 0x8000, "minus zero keeps its sign"),
    (0x3F807FFF, 0x3F80, "below half goes down"),
    (0x3F808000, 0x3F80, "a tie goes to the even neighbour below"),
    (0x3F818000, 0x3F82, "a tie goes to the even neighbour above"),
    (0x3F808001, 0x3F81, "above half goes up"),
    (0x3FFFFFFF, 0x4000, "rounding carries into the exponent"),
    (0x7F7FFFFF, 0x7F80, "the largest float becomes infinity"),
    (0x7F800000, 0x7F80, "infinity stays"),
    (0xFF800000, 0xFF80, "minus infinity stays"),
    (0x00000001, 0x0000, "the smallest subnormal vanishes"),
    (0x00018000, 0x0002, "subnormals round like the rest"),
]


@pytest.mark.parametrize(("bits", "expected", "why"), ROUNDING, ids=[why for _, _, why in ROUNDING])
def test_rounding_to_bfloat16(bits: int, expected: int, why: str) -> None:
    value = np.array([bits], dtype=np.uint32).view(np.float32)
    assert to_bfloat16(value).tolist() == [expected], why


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
def test_a_nan_stays_a_nan(bits: int) -> None:
    rounded = int(to_bfloat16(np.array([bits], dtype=np.uint32).view(np.float32))[0])
    assert rounded & 0x7F80 == 0x7F80
    assert rounded & 0x007F


def test_rounding_equals_torch_on_random_bits() -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, size=200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(to_bfloat16(values), expected)


def test_rounding_keeps_shape_and_takes_strided_input() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6).T
    assert to_bfloat16(values).shape == (6, 4)
    assert np.array_equal(to_bfloat16(values).astype(np.uint32) << 16, np.ascontiguousarray(values).view(np.uint32))
