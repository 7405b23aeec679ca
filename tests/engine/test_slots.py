"""A step's draw that finds no memory for one of its results is made again from the start: nothing may count twice."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine.base import SamplingParams
from service.engine.kernels import torch_ops
from service.engine.steps.slots import Slots

VOCAB = 40
MORE_THAN_ENOUGH = 10_000
NUMBERS = torch.tensor([2, 0, 3, 3])  # the spare slot pads
PENALIZED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.5, seed=4)


class Memory(TorchDispatchMode):
    """Room for so many results; a view and what is written in place need none."""

    def __init__(self, results: int) -> None:
        super().__init__()
        self.left = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(each.alias_info is None for each in func._schema.returns):
            if not self.left:
                raise torch.OutOfMemoryError(f"no room for {func}")
            self.left -= 1
        return func(*args, **(kwargs or {}))


def used_slots() -> Slots:
    slots = Slots(3, 2, VOCAB, torch.device("cpu"))
    for slot in range(3):
        slots.set_parameters(slot, PENALIZED)
    slots.positions[:3] = torch.tensor([5, 6, 7])
    return slots


def draw(slots: Slots, logits: torch.Tensor) -> None:
    torch_ops.sample(logits, slots, NUMBERS, slots.methods(NUMBERS.tolist()))


def results_of_a_draw(logits: torch.Tensor) -> int:
    slots = used_slots()
    with Memory(MORE_THAN_ENOUGH) as memory:
        draw(slots, logits)
    assert memory.left < MORE_THAN_ENOUGH
    return MORE_THAN_ENOUGH - memory.left


def state(slots: Slots) -> list[list[Any]]:
    return [each.tolist() for each in (slots.tokens[:3], slots.positions, slots._marks[:3])]


def test_a_draw_that_found_no_memory_anywhere_in_it_is_made_again_with_the_same_result() -> None:
    logits = torch.randn(len(NUMBERS), VOCAB, generator=torch.Generator().manual_seed(1))
    expected = used_slots()
    draw(expected, logits)
    assert state(expected) != state(used_slots())
    for results in range(results_of_a_draw(logits)):
        slots = used_slots()
        with pytest.raises(torch.OutOfMemoryError), Memory(results):
            draw(slots, logits)
        draw(slots, logits)
        assert state(slots) == state(expected), f"after {results} results"
