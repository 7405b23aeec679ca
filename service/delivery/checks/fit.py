"""Will it fit? Weights, KV cache and working memory of a model directory against a GPU, in pure arithmetic.

From config.json and the safetensors headers alone, so that it is known before 17.6 GB are read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.delivery.disk.directory import shard_names
from service.delivery.disk.safetensors_header import BadHeader, read_header
from service.delivery.failures import Cause, DeliveryFailed
from service.engine.config import ModelConfig, read_config
from service.engine.defaults import BLOCK_TOKENS, NUMBERS_AT_ONCE, RUNNING_ON_GPU, Quantization, step_tokens_on_gpu

CUDA_BYTES = 1 << 30
"""CUDA context, library workspaces and the decode graphs of all batch sizes: an estimate, on the safe side."""

GIB = 1 << 30


class Asked(Protocol):
    """The settings that decide about memory, wherever they are declared; 0 stands for a default."""

    @property
    def max_context(self) -> int: ...
    @property
    def max_running(self) -> int: ...
    @property
    def step_tokens(self) -> int: ...
    @property
    def kv_cache_tokens(self) -> int: ...
    @property
    def gpu_memory_fraction(self) -> float: ...
    @property
    def quantization(self) -> Quantization: ...


@dataclass(frozen=True)
class Demand:
    """What the engine is asked to hold, and the share of the GPU it may take."""

    max_context: int
    running: int
    step_tokens: int
    memory_fraction: float
    number_bytes: int = 2
    kv_cache_tokens: int = 0  # what fits
    quantization: Quantization = "none"
    can_quantize: bool = True  # not every engine does

    @classmethod
    def on_gpu(cls, asked: Asked, number_bytes: int, total: int) -> "Demand":
        """What these settings mean on a GPU of `total` bytes."""
        return cls(
            max_context=asked.max_context,
            running=asked.max_running or RUNNING_ON_GPU,
            step_tokens=asked.step_tokens or step_tokens_on_gpu(total),
            memory_fraction=asked.gpu_memory_fraction,
            number_bytes=number_bytes,
            kv_cache_tokens=asked.kv_cache_tokens,
            quantization=asked.quantization,
        )


def weight_bytes(model: ModelConfig, elements: int, demand: Demand) -> int:
    """Those of a model of `elements` numbers. Quantized, a matrix that a step multiplies with has a byte a number and
    four a row, and the head its own, also where the embedding is one with it."""
    if demand.quantization == "none":
        return elements * demand.number_bytes
    head = (model.vocab_size, model.hidden_size)
    rows = [*model.layer_matrices * model.num_layers, head]
    rounded = sum(width * depth for width, depth in rows)
    others = elements - rounded + (head[0] * head[1] if model.tied_head else 0)
    return rounded + 4 * sum(width for width, _ in rows) + others * demand.number_bytes


def kv_bytes_per_token(model: ModelConfig, number_bytes: int) -> int:
    """Key and value of every layer: 48 KiB for InternLM3-8B in bfloat16."""
    return 2 * model.num_layers * model.kv_size * number_bytes


def working_bytes(model: ModelConfig, demand: Demand) -> int:
    """What a step needs beside weights and cache: a chunk's activations, a batch's logits, a context's queries.

    The sampler's temporaries count as six fp32 copies of the logits: scores, their sort (values and indices are
    twelve bytes a token), probabilities and sums. Steps of many rows widen a quantized matrix first.
    """
    projection = model.query_size + 2 * model.kv_size
    widest = max(2 * model.intermediate_size, projection) + 4 * model.hidden_size
    activations = 2 * demand.step_tokens * widest * demand.number_bytes
    logits = 6 * 4 * demand.running * model.vocab_size
    queries = 4 * demand.max_context * model.query_size * demand.number_bytes
    widened = 0 if demand.quantization == "none" else NUMBERS_AT_ONCE * demand.number_bytes
    return activations + logits + queries + widened


@dataclass(frozen=True)
class Fit:
    """All in bytes; `room` is what the KV cache may take, negative if not even the rest fits."""

    weights: int
    working: int
    kv_per_token: int
    usable: int
    context: int
    running: int
    kv_cache_tokens: int = 0  # that were asked for

    @property
    def wanted_tokens(self) -> int:
        """Tokens of the cache that was asked for, or of one request."""
        return self.kv_cache_tokens or self.context

    @property
    def least_tokens(self) -> int:
        """Tokens the KV cache must hold: those that were asked for, in whole blocks, or a single block."""
        return _whole_blocks(self.kv_cache_tokens or BLOCK_TOKENS)

    @property
    def room(self) -> int:
        return self.usable - self.weights - self.working

    @property
    def tokens(self) -> int:
        """Tokens the KV cache has room for."""
        return max(0, self.room) // self.kv_per_token // BLOCK_TOKENS * BLOCK_TOKENS

    @property
    def cache_tokens(self) -> int:
        """Tokens the KV cache will hold: all there is room for, unless some number was asked for."""
        return self.least_tokens if self.kv_cache_tokens else self.tokens

    @property
    def longest(self) -> int:
        """Tokens of the longest request: those of the context, which shrinks to what the cache will hold."""
        return min(self.context, self.cache_tokens)

    @property
    def missing(self) -> int:
        """Bytes that are missing to be whole; negative where there is room to spare."""
        return _whole_blocks(self.wanted_tokens) * self.kv_per_token - self.room

    @property
    def is_enough(self) -> bool:
        """Whether it can serve at all, and with the cache that was asked for."""
        return self.tokens >= self.least_tokens

    @property
    def is_whole(self) -> bool:
        """Whether it can serve a request of the whole context, or with the cache that was asked for."""
        return self.missing <= 0

    @property
    def grade(self) -> tuple[bool, bool]:
        """How good it is, to compare two of one model: enough is better than nothing, whole better than enough."""
        return self.is_enough, self.is_whole

    @property
    def summary(self) -> str:
        """`16.4 GiB weights + 2.9 GiB working memory + 1.5 GiB KV (one request of 32,768 tokens) of 21.6 GiB`."""
        kv = _gib(self.wanted_tokens * self.kv_per_token)
        what = "the cache asked for," if self.kv_cache_tokens else "one request of"
        return (
            f"{_gib(self.weights)} weights + {_gib(self.working)} working memory + {kv} KV "
            f"({what} {self.wanted_tokens:,} tokens) of {_gib(self.usable)} usable"
        )

    @property
    def capacity(self) -> str:
        """`KV cache of 1,148,672 tokens: 35 requests of 32,768 tokens at once, or 256 of 4,480`, in whole blocks."""
        blocks, blocks_of_longest = self.cache_tokens // BLOCK_TOKENS, _whole_blocks(self.longest) // BLOCK_TOKENS
        few, many = (min(self.running, count) for count in (blocks // blocks_of_longest, blocks))
        longest = f"{few:,} request{'s' * (few != 1)} of {self.longest:,} tokens at once"
        shorter = f", or {many:,} of {blocks // many * BLOCK_TOKENS:,}" if many > few else ""
        return f"KV cache of {self.cache_tokens:,} tokens: {longest}{shorter}"


def compute_fit(model: ModelConfig, elements: int, demand: Demand, free: int, total: int) -> Fit:
    """The fit of a model of `elements` numbers on a GPU with `free` of `total` bytes."""
    return Fit(
        weights=weight_bytes(model, elements, demand),
        working=working_bytes(model, demand) + CUDA_BYTES,
        kv_per_token=kv_bytes_per_token(model, demand.number_bytes),
        usable=int(free - total * (1 - demand.memory_fraction)),
        context=min(demand.max_context, model.max_positions),
        running=demand.running,
        kv_cache_tokens=demand.kv_cache_tokens,
    )


FitOf = Callable[[Demand, int, int], Fit]
"""The fit of one model: what is demanded of it, on a GPU of so many free and total bytes."""


def fit_of(model_dir: Path) -> FitOf:
    """That of a directory's model, read once. Raises ConfigurationError, DeliveryFailed, OSError."""
    model, elements = read_config(model_dir), count_elements(model_dir)
    return lambda demand, free, total: compute_fit(model, elements, demand, free, total)


def count_elements(model_dir: Path) -> int:
    """How many numbers the weights have; raises DeliveryFailed, OSError."""
    shards = shard_names(model_dir, [path.name for path in model_dir.iterdir()])
    try:
        return sum(read_header(model_dir / shard).elements for shard in shards)
    except BadHeader as error:
        raise DeliveryFailed(Cause.INTEGRITY, f"the weights in {model_dir}: {error}") from None


def _whole_blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
