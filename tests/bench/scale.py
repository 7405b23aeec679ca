"""How large a benchmark run is: the 8B model on a GPU, or a few layers on a CPU, to see that all of it runs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from service.delivery.disk.directory import INDEX_FILE, SINGLE_FILE
from service.engine.config import read_config
from service.engine.weights import allocate, places_of
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.tokenizers import write_byte_level_dir

SHARD_BYTES = 2 << 30
NOISE_NUMBERS = 64 << 20
"""Random numbers drawn; every tensor is cut out of them, since drawing 8.8 billion would take minutes."""
SPACE = "Ġ"  # as a byte-level vocabulary writes it


@dataclass(frozen=True)
class Scale:
    """Everything a run's length hangs on. Prompts are in tokens."""

    shape: Shape
    concurrency: tuple[int, ...]
    prompts: tuple[int, int]
    new_tokens: int
    step_batches: tuple[int, ...]
    step_context: int
    timed_steps: int
    long_contexts: tuple[int, ...]
    prefill: int
    shared_prefix: int
    turn: int  # a chat's second turn, after the shared prefix
    stall_prompt: int
    stall_streams: int
    stall_steps: int  # before a long prompt, and beside long prompts
    serial_tokens: int  # of transformers' one request, around the context of the steps
    streams: int  # concurrent requests of the comparisons: peers, HTTP
    http_new_tokens: int


FULL = Scale(
    shape=Shape(
        heads=32,
        kv_heads=2,
        head_dim=128,
        hidden=4096,
        intermediate=10_240,
        layers=48,
        vocab=128_512,
        max_positions=32_768,
        dtype=torch.bfloat16,
        scale=0.02,
    ),
    concurrency=(1, 4, 16, 64, 128, 256),
    prompts=(128, 512),
    new_tokens=256,
    step_batches=(1, 64, 256),
    step_context=512,
    timed_steps=64,
    long_contexts=(8192, 32_000),
    prefill=8192,
    shared_prefix=4096,
    turn=16,
    stall_prompt=30_000,
    stall_streams=16,
    stall_steps=200,
    serial_tokens=128,
    streams=64,
    http_new_tokens=256,
)
TINY = replace(
    FULL,
    # Ids enough that those of single bytes, half of which are no text, are rare.
    shape=Shape(vocab=16_384, max_positions=1024, scale=0.05),
    concurrency=(1, 2),
    prompts=(8, 24),
    new_tokens=6,
    step_batches=(1, 2),
    step_context=24,
    timed_steps=4,
    long_contexts=(64, 128),
    prefill=128,
    shared_prefix=64,
    stall_prompt=300,
    stall_streams=2,
    stall_steps=20,
    serial_tokens=4,
    streams=2,
    http_new_tokens=6,
)


def ready_model(directory: Path, shape: Shape) -> Path:
    """`directory`, which holds a model or is given a random one; one that was cut off is written anew."""
    if any((directory / name).is_file() for name in (INDEX_FILE, SINGLE_FILE)):
        return directory
    return write_random_model(directory, shape)


def write_random_model(directory: Path, shape: Shape) -> Path:
    """A checkpoint of this shape with random weights and a small real tokenizer: enough to serve, nothing to say."""
    write_byte_level_dir(directory)
    _give_every_id_text(directory / "tokenizer.json", shape.vocab)
    eos = (directory / "generation_config.json").read_text()
    write_checkpoint(directory, shape, tensors={"lm_head.weight": torch.zeros(1)})
    (directory / "generation_config.json").write_text(eos)
    (directory / SINGLE_FILE).unlink()
    config = read_config(directory)
    places = places_of(allocate(config, torch.device("meta"), shape.dtype), config)
    _write_shards(directory, {name: place.shape for name, place in places.items()}, shape)
    return directory


def _give_every_id_text(file: Path, vocab: int) -> None:
    """Fill a tokenizer's vocabulary up to the head's rows with words that no text becomes: what a random model says is
    then sent as text for each token, as an answer of the real one is. Ids without text are not sent at all."""
    tokenizer = json.loads(file.read_text("utf-8"))
    known = tokenizer["model"]["vocab"]
    known |= {f"{SPACE}w{token}": token for token in range(len(known), vocab)}
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _write_shards(directory: Path, shapes: dict[str, torch.Size], shape: Shape) -> None:
    count = NOISE_NUMBERS if shape.hidden > 1000 else 1 << 20
    seeded = torch.Generator().manual_seed(shape.seed)  # what the model says does not differ from run to run
    noise = (torch.randn(count, generator=seeded) * shape.scale).to(shape.dtype)
    shards: list[list[str]] = [[]]
    size = 0
    for name, wanted in shapes.items():
        if size + wanted.numel() * noise.itemsize > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += wanted.numel() * noise.itemsize
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _tensor(noise, name, shapes[name]) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = noise.itemsize * sum(wanted.numel() for wanted in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX_FILE).write_text(json.dumps(index))


def _tensor(noise: torch.Tensor, name: str, shape: torch.Size) -> torch.Tensor:
    """Numbers of its own for every name: the noise from another place on, over and over."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=noise.dtype)
    start = sum(map(ord, name)) * 7919 % (noise.shape[0] // 2)
    piece = noise[start:]
    repeats = -(-shape.numel() // piece.shape[0])
    return piece.repeat(repeats)[: shape.numel()].view(shape).clone()
