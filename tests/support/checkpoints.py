"""Tiny random checkpoints in InternLM3's layout: the real key names, the real config keys, both kinds of files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCAB = 320


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What distinguishes one tiny checkpoint from another."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    hidden: int = 64
    intermediate: int = 96
    layers: int = 2
    vocab: int = VOCAB
    qkv_bias: bool = False
    bias: bool = False
    tied: bool = False
    max_positions: int = 512
    dtype: torch.dtype = torch.float32
    shards: int = 1
    seed: int = 0
    scale: float = 0.2

    @property
    def name(self) -> str:
        parts = [f"{self.heads}to{self.kv_heads}", "tied" if self.tied else "untied", f"{self.shards}file"]
        parts += ["qkvbias"] * self.qkv_bias + ["bias"] * self.bias + [str(self.dtype).removeprefix("torch.")]
        return "-".join(parts)


def config_of(shape: Shape) -> dict[str, Any]:
    """A config.json with exactly the keys of InternLM3-8B-Instruct's."""
    return {
        "architectures": ["InternLM3ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {
            "AutoConfig": "configuration_internlm3.InternLM3Config",
            "AutoModel": "modeling_internlm3.InternLM3Model",
            "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
        },
        "bias": shape.bias,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.max_positions,
        "model_type": "internlm3",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": 2,
        "qkv_bias": shape.qkv_bias,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
        "rope_theta": 50000000,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": str(shape.dtype).removeprefix("torch."),
        "transformers_version": "4.47.1",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def tensors_of(shape: Shape) -> dict[str, torch.Tensor]:
    """Random tensors under the real names. Norms are near one, matrices large enough for decisive logits."""
    generator = torch.Generator().manual_seed(shape.seed)

    def random(*size: int) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * shape.scale).to(shape.dtype)

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors = {
        "model.embed_tokens.weight": random(shape.vocab, shape.hidden),
        "model.norm.weight": 1 + random(shape.hidden),
    }
    if not shape.tied:
        tensors["lm_head.weight"] = random(shape.vocab, shape.hidden)
    linears = {
        "self_attn.q_proj": (q, shape.hidden, shape.qkv_bias),
        "self_attn.k_proj": (kv, shape.hidden, shape.qkv_bias),
        "self_attn.v_proj": (kv, shape.hidden, shape.qkv_bias),
        "self_attn.o_proj": (shape.hidden, q, shape.bias),
        "mlp.gate_proj": (shape.intermediate, shape.hidden, shape.bias),
        "mlp.up_proj": (shape.intermediate, shape.hidden, shape.bias),
        "mlp.down_proj": (shape.hidden, shape.intermediate, shape.bias),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = 1 + random(shape.hidden)
        for name, (rows, columns, has_bias) in linears.items():
            tensors[f"{prefix}{name}.weight"] = random(rows, columns)
            if has_bias:
                tensors[f"{prefix}{name}.bias"] = random(rows)
    return tensors


def write_checkpoint(
    directory: Path, shape: Shape, *, tensors: dict[str, torch.Tensor] | None = None, **config: Any
) -> Path:
    """A model directory of this shape; `tensors` and `config` replace what would be written."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_of(shape) | config))
    (directory / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 2})
    )
    _write_tensors(directory, tensors_of(shape) if tensors is None else tensors, shape.shards)
    return directory


def _write_tensors(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(part, directory / file, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
