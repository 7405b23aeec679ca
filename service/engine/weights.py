"""Weights from safetensors onto the device, fused on the way: q, k, v into one matrix and gate, up into another.

Every tensor is copied straight to its place, so that host memory never holds a second copy of the model. With
quantization its numbers are rounded on the way: then every matrix that a step multiplies with is an Int8Matrix, and the
embedding, of which a step reads a row a token, is not.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from service.engine.checkpoint.tensors import Checkpoint
from service.engine.config import ModelConfig
from service.engine.defaults import Quantization
from service.engine.quantization import Int8Matrix, Matrix, empty_matrix, split


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. Matrices are [out, in]; a bias is None where the checkpoint has none."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Matrix  # [query_size + 2 * kv_size, hidden]
    qkv_bias: torch.Tensor | None
    o: Matrix  # [hidden, query_size]
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor  # [hidden]
    gate_up: Matrix  # [2 * intermediate, hidden]
    gate_up_bias: torch.Tensor | None
    down: Matrix  # [hidden, intermediate]
    down_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model; `head` is `embedding` itself where the two are tied and none is quantized."""

    embedding: torch.Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    norm: torch.Tensor  # [hidden]
    head: Matrix  # [vocab, hidden]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load cost: bytes read from the files, and seconds."""

    bytes_read: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        return self.bytes_read / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        return f"{self.bytes_read / 1e9:.2f} GB in {self.seconds:.1f} s, {self.bytes_per_second / 1e9:.2f} GB/s"


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization = "none",
) -> tuple[Weights, LoadReport]:
    """A checkpoint that was checked, as fused tensors of `dtype` on `device`.

    Raises ConfigurationError when a file is damaged or gone.
    """
    started = time.perf_counter()
    weights = allocate(config, device, dtype, quantization)
    bytes_read = checkpoint.read_into(places_of(weights, config), staged=device.type == "cuda")
    if config.tied_head and isinstance(weights.head, Int8Matrix):
        weights.head.copy_(weights.embedding)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return weights, LoadReport(bytes_read, time.perf_counter() - started)


def open_checked(model_dir: Path, config: ModelConfig) -> Checkpoint:
    """The checkpoint in `model_dir`. Reads only headers.

    Raises ConfigurationError, once, naming every tensor that is missing, unexpected or of another shape than
    `config` says, and when a file is absent or damaged.
    """
    checkpoint = Checkpoint(model_dir, lambda name: _is_ignored(name, config))
    # Shapes are compared on the meta device: a wrong directory must not cost the memory of a model.
    checkpoint.check(places_of(allocate(config, torch.device("meta"), torch.float32), config))
    return checkpoint


def _is_ignored(name: str, config: ModelConfig) -> bool:
    """Buffers that old checkpoints carry, and the copy of the embedding that some tied checkpoints carry."""
    return name.endswith("rotary_emb.inv_freq") or (config.tied_head and name == "lm_head.weight")


def allocate(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, quantization: Quantization = "none"
) -> Weights:
    """Uninitialised weights of the shapes `config` asks for."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def matrix(rows: int, columns: int) -> Matrix:
        return empty_matrix(rows, columns, quantization, device, dtype)

    embedding = empty(config.vocab_size, config.hidden_size)
    has_head = quantization != "none" or not config.tied_head
    return Weights(
        embedding=embedding,
        layers=[_allocate_layer(config, empty, matrix) for _ in range(config.num_layers)],
        norm=empty(config.hidden_size),
        head=matrix(config.vocab_size, config.hidden_size) if has_head else embedding,
    )


def _allocate_layer(
    config: ModelConfig, empty: Callable[[int], torch.Tensor], matrix: Callable[[int, int], Matrix]
) -> LayerWeights:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    qkv, output, gate_up, down = (matrix(*shape) for shape in config.layer_matrices)
    return LayerWeights(
        input_norm=empty(hidden),
        qkv=qkv,
        qkv_bias=empty(config.query_size + 2 * config.kv_size) if config.qkv_bias else None,
        o=output,
        o_bias=empty(hidden) if config.o_bias else None,
        post_norm=empty(hidden),
        gate_up=gate_up,
        gate_up_bias=empty(2 * intermediate) if config.mlp_bias else None,
        down=down,
        down_bias=empty(hidden) if config.mlp_bias else None,
    )


def places_of(weights: Weights, config: ModelConfig) -> dict[str, Matrix]:
    """For every tensor name of the checkpoint the view it belongs into, be it a matrix or not."""
    places: dict[str, Matrix] = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.norm}
    if not config.tied_head:
        places["lm_head.weight"] = weights.head
    for index, layer in enumerate(weights.layers):
        for name, tensor in _layer_places(layer, config):
            places[f"model.layers.{index}.{name}"] = tensor
    return places


def _layer_places(layer: LayerWeights, config: ModelConfig) -> Iterator[tuple[str, Matrix]]:
    yield "input_layernorm.weight", layer.input_norm
    yield "post_attention_layernorm.weight", layer.post_norm
    qkv = [config.query_size, config.kv_size, config.kv_size]
    gate_up = [config.intermediate_size, config.intermediate_size]
    fused: list[tuple[list[str], list[int], Matrix, torch.Tensor | None]] = [
        (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], qkv, layer.qkv, layer.qkv_bias),
        (["self_attn.o_proj"], [config.hidden_size], layer.o, layer.o_bias),
        (["mlp.gate_proj", "mlp.up_proj"], gate_up, layer.gate_up, layer.gate_up_bias),
        (["mlp.down_proj"], [config.hidden_size], layer.down, layer.down_bias),
    ]
    for names, rows, weight, bias in fused:
        yield from zip((f"{name}.weight" for name in names), split(weight, rows), strict=True)
        if bias is not None:
            yield from zip((f"{name}.bias" for name in names), torch.split(bias, rows), strict=True)
