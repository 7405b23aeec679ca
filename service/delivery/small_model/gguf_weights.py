"""GGUF tensors as the bfloat16 safetensors a Llama checkpoint has. NumPy only: torch is the engine's alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize_file

from service.delivery.reporting.progress import CONVERTING, Progress
from service.errors import ConfigurationError

_MODEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_weights(tensors: Sequence[gguf.ReaderTensor], config: dict[str, Any], file: Path, progress: Progress) -> None:
    """Dequantise, undo llama.cpp's permutation, round to bfloat16, write under checkpoint names."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    converted: dict[str, NDArray[np.uint16]] = {}
    for number, tensor in enumerate(tensors, start=1):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if permuted := heads.get(_part(tensor.name)):
            values = unpermute(values, permuted)
        converted[checkpoint_name(tensor.name)] = to_bfloat16(values)
        progress(CONVERTING, number, len(tensors))
    _write_safetensors(converted, file)


def checkpoint_name(name: str) -> str:
    """The checkpoint's name of a GGUF tensor: `blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`.

    Raises ConfigurationError for a tensor this architecture does not have: silently dropped it would be a wrong model.
    """
    if name in _MODEL:
        return _MODEL[name]
    part = _part(name)
    if part not in _LAYER:
        raise ConfigurationError(f"the GGUF file has a tensor {name}, which InternLM3's architecture does not have")
    _, layer, _, kind = name.split(".")
    return f"model.layers.{layer}.{_LAYER[part]}.{kind}"


def unpermute(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a q or k projection [heads * head_dim, hidden] in the checkpoint's order.

    llama.cpp rotates neighbouring pairs and stores (0, h, 1, h+1, …) with h = head_dim / 2 (convert_hf_to_gguf.py,
    LlamaModel.permute); checkpoints rotate the two halves and store (0, 1, …, h, h+1, …).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of `values` in bfloat16, rounded to nearest, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    quiet_nan = (bits >> 16) | 0x0040
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def _part(name: str) -> str:
    """`attn_q` of `blk.3.attn_q.weight`; empty for a tensor outside the layers."""
    pieces = name.split(".")
    return pieces[2] if pieces[0] == "blk" and len(pieces) == 4 else ""


def _write_safetensors(tensors: dict[str, NDArray[np.uint16]], file: Path) -> None:
    # NumPy has no bfloat16, so its bits go through the raw interface; `tensors` keeps the memory alive meanwhile.
    specs = {
        name: TensorSpec(dtype="bfloat16", shape=bits.shape, data_ptr=bits.ctypes.data, data_len=bits.nbytes)
        for name, bits in tensors.items()
    }
    serialize_file(specs, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors makes it 0600, which another user of a shared cache could not read
