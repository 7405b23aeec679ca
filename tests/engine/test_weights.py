"""Loading weights: every tensor lands in its place whatever the files look like, and what doesn't fit is named."""

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from service.engine import weights
from service.engine.checkpoint import tensors as subject
from service.engine.checkpoint.tensors import Checkpoint
from service.engine.config import ModelConfig, read_config
from service.engine.weights import Weights, allocate, load_weights, open_checked, places_of
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, tensors_of, write_checkpoint

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return load_weights(open_checked(directory, config := read_config(directory)), config, CPU, dtype)[0]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(heads=16, kv_heads=1, head_dim=4),
        Shape(qkv_bias=True, bias=True, tied=True),
        Shape(qkv_bias=True),
        Shape(bias=True, dtype=torch.bfloat16),
    ],
    ids=lambda shape: shape.name,
)
def test_every_tensor_lands_in_its_place(tmp_path: Path, shape: Shape, shards: int) -> None:
    tensors = tensors_of(shape)
    write_checkpoint(tmp_path, Shape(**{**vars(shape), "shards": shards}))
    weights = load(tmp_path)

    def stacked(layer: int, names: list[str], kind: str) -> torch.Tensor:
        return torch.cat([tensors[f"model.layers.{layer}.{name}.{kind}"] for name in names]).float()

    assert torch.equal(weights.embedding, tensors["model.embed_tokens.weight"].float())
    assert torch.equal(weights.norm, tensors["model.norm.weight"].float())
    assert torch.equal(weights.head, tensors["model.embed_tokens.weight" if shape.tied else "lm_head.weight"].float())
    qkv = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    gate_up = ["mlp.gate_proj", "mlp.up_proj"]
    for index, layer in enumerate(weights.layers):
        assert torch.equal(layer.input_norm, stacked(index, ["input_layernorm"], "weight"))
        assert torch.equal(layer.post_norm, stacked(index, ["post_attention_layernorm"], "weight"))
        for names, weight, bias, has_bias in (
            (qkv, layer.qkv, layer.qkv_bias, shape.qkv_bias),
            (["self_attn.o_proj"], layer.o, layer.o_bias, shape.bias),
            (gate_up, layer.gate_up, layer.gate_up_bias, shape.bias),
            (["mlp.down_proj"], layer.down, layer.down_bias, shape.bias),
        ):
            assert torch.equal(weight, stacked(index, names, "weight"))
            assert (bias is not None) == has_bias
            if bias is not None:
                assert torch.equal(bias, stacked(index, names, "bias"))


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    weights = load(write_checkpoint(tmp_path, Shape(tied=True)))
    assert weights.head is weights.embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_cast_to_the_dtype_that_serves(tmp_path: Path, dtype: torch.dtype) -> None:
    shape = Shape(dtype=torch.bfloat16)
    weights = load(write_checkpoint(tmp_path, shape), dtype)
    assert weights.layers[1].down.dtype == dtype
    assert torch.equal(weights.layers[1].down, tensors_of(shape)["model.layers.1.mlp.down_proj.weight"].to(dtype))


@pytest.mark.parametrize(("device", "staged"), [("cuda", True), ("cpu", False)])
def test_a_gpu_is_loaded_through_pinned_buffers_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, staged: bool
) -> None:
    """From mapped files the driver would stage every copy at a fraction of the bus's speed."""
    said: list[object] = []
    allocate, read_into = weights.allocate, Checkpoint.read_into

    def allocate_here(config: ModelConfig, wanted: torch.device, *kept: Any) -> Weights:
        return allocate(config, wanted if wanted.type == "meta" else CPU, *kept)

    def read(checkpoint: Checkpoint, places: Mapping[str, torch.Tensor], staged: bool = False) -> int:
        count = read_into(checkpoint, places, staged=staged)
        said.append(staged)
        return count

    monkeypatch.setattr(weights, "allocate", allocate_here)
    monkeypatch.setattr(Checkpoint, "read_into", read)
    monkeypatch.setattr(torch.cuda, "synchronize", said.append)
    write_checkpoint(tmp_path, Shape())
    target = torch.device(device)
    loaded, _ = load_weights(open_checked(tmp_path, config := read_config(tmp_path)), config, target, torch.float32)
    assert said == ([True, target] if staged else [False])
    assert torch.equal(loaded.norm, tensors_of(Shape())["model.norm.weight"].float())


@pytest.mark.parametrize(("staged", "read"), [(False, "_read"), (True, "_read_staged")])
def test_tensors_are_read_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, staged: bool, read: str
) -> None:
    """One reader alone gets a fraction of what a network volume gives."""
    places_to_meet = [threading.Barrier(2)] * 2
    one = getattr(subject, read)

    def meet(*arguments: object) -> object:
        with suppress(IndexError):
            places_to_meet.pop().wait(timeout=10)
        return one(*arguments)

    monkeypatch.setattr(subject, read, meet)
    config = read_config(write_checkpoint(tmp_path, Shape(shards=3)))
    places = places_of(allocate(config, CPU, torch.float32), config)
    Checkpoint(tmp_path, lambda name: False).read_into(places, staged=staged)
    assert places_to_meet == []


def test_the_report_counts_the_bytes_of_the_files(tmp_path: Path) -> None:
    shape = Shape(shards=2, dtype=torch.bfloat16)
    write_checkpoint(tmp_path, shape)
    _, report = load_weights(open_checked(tmp_path, config := read_config(tmp_path)), config, CPU, torch.float32)
    assert report.bytes_read == sum(2 * tensor.numel() for tensor in tensors_of(shape).values())
    assert report.seconds > 0
    assert report.bytes_per_second == pytest.approx(report.bytes_read / report.seconds)


def test_everything_that_does_not_fit_is_named_in_one_error(tmp_path: Path) -> None:
    tensors = tensors_of(Shape())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    tensors["model.norm.weight"] = torch.ones(3)
    write_checkpoint(tmp_path, Shape(), tensors=tensors)
    with pytest.raises(ConfigurationError) as refusal:
        load(tmp_path)
    message = refusal.value.message
    assert "missing: model.layers.1.mlp.up_proj.weight" in message
    assert "unexpected: model.layers.0.self_attn.q_proj.bias" in message
    assert "of another shape: model.norm.weight [3] instead of [64]" in message
    assert str(tmp_path) in message


def test_weights_that_were_rounded_are_refused_on_every_device(tmp_path: Path) -> None:
    """config.json may have no word of it, and their scales are elsewhere."""
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = tensors_of(Shape())
    tensors[name] = tensors[name].to(torch.int8)
    write_checkpoint(tmp_path, Shape(), tensors=tensors)
    with pytest.raises(ConfigurationError, match=f"of another type than F64, F32, F16, BF16: {name} I8"):
        load(tmp_path)


def test_a_long_list_of_misfits_is_cut_with_their_number(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(), tensors={"lm_head.weight": torch.zeros(320, 64)})
    with pytest.raises(ConfigurationError, match=r"and 12 more"):
        load(tmp_path)


def test_what_loaders_of_this_architecture_ignore_is_ignored(tmp_path: Path) -> None:
    tensors = tensors_of(Shape(tied=True))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    tensors["lm_head.weight"] = torch.zeros(320, 64)
    weights = load(write_checkpoint(tmp_path, Shape(tied=True), tensors=tensors))
    assert torch.equal(weights.head, tensors["model.embed_tokens.weight"])


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="neither"):
        load(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(shards=3))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"model-00002-of-00003\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = write_checkpoint(tmp_path, Shape()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: damaged"):
        load(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_named(tmp_path: Path, index: str) -> None:
    write_checkpoint(tmp_path, Shape(shards=2))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigurationError, match="not a safetensors index"):
        load(tmp_path)


def test_an_index_that_promises_what_a_shard_lacks_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape(shards=2))
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = index["weight_map"]["model.norm.weight"]
    save_file({"something.else": torch.zeros(1)}, tmp_path / shard)
    with pytest.raises(ConfigurationError, match=f"{shard}: the index promises"):
        load(tmp_path)
