"""What work on a model must cost at least: bytes at the memory's rate, products at the matmul's."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.config import ModelConfig
from tests.bench.limits import Limits


def matrix_numbers(c: ModelConfig) -> int:
    """Numbers of all matrices that every token meets in every step, the head left out."""
    return c.num_layers * sum(rows * columns for rows, columns in c.layer_matrices)


def parameters(c: ModelConfig) -> int:
    """All numbers of a model but its norms."""
    return matrix_numbers(c) + 2 * c.vocab_size * c.hidden_size


def step_bytes(c: ModelConfig, batch: int, context: int, itemsize: int, matrix_itemsize: int) -> int:
    """What a decode must read at least: all matrices and the head once, each sequence's KV once."""
    weights = matrix_numbers(c) + c.vocab_size * c.hidden_size
    kv = batch * context * 2 * c.num_layers * c.kv_size
    return weights * matrix_itemsize + kv * itemsize


def prefill_flop(c: ModelConfig, tokens: int) -> float:
    """Two per weight and token; attention's two products over half the square."""
    return 2.0 * matrix_numbers(c) * tokens + 2.0 * c.num_layers * c.query_size * tokens**2


@dataclass(frozen=True)
class Floor:
    """Seconds that no engine can go below on this machine, whose limits were measured."""

    config: ModelConfig
    limits: Limits
    itemsize: int
    matrix_itemsize: int

    def step(self, batch: int, context: int) -> float:
        """A decode of `batch` sequences of `context` tokens."""
        size = step_bytes(self.config, batch, context, self.itemsize, self.matrix_itemsize)
        return size / self.limits.memory

    def prefill(self, tokens: int, cached: int = 0) -> float:
        """`tokens` after `cached` ones: their products, or reading weights and KV where that takes longer."""
        flop = prefill_flop(self.config, cached + tokens) - prefill_flop(self.config, cached)
        return max(flop / self.limits.matmul, self.step(1, cached))

    def first_tokens(self, prompts: Sequence[int]) -> list[float]:
        """Seconds until each of these prompts, which come at once, is computed: one after the other."""
        return list(itertools.accumulate(self.prefill(tokens) for tokens in prompts))

    def requests(self, prompts: Sequence[int], new_tokens: int) -> float:
        """All these prompts, then steps of all of them; a prompt gives the first token."""
        context = sum(prompts) // len(prompts)
        steps = sum(self.step(len(prompts), context + done) for done in range(1, new_tokens))
        return self.first_tokens(prompts)[-1] + steps
