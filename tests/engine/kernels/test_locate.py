"""Where the sequences of a decode stand, by their slots."""

import pytest
import torch

from service.engine.kernels.batch import DecodeInputs
from service.engine.steps.slots import Slots
from tests.engine.kernels.conftest import Subject


def located(subject: Subject, numbers: list[int], block_size: int) -> DecodeInputs:
    """For slots whose tables count down from 100 + 10 * slot."""
    slots = Slots(300, 6, 8, subject.device)
    number = torch.arange(301, device=subject.device)
    slots.tokens[:], slots.positions[:] = number * 3, number % (6 * block_size)
    slots.tables[:] = (100 + 10 * number[:, None] - torch.arange(6, device=subject.device)).int()
    slots.tokens[slots.spare] = slots.positions[slots.spare] = slots.tables[slots.spare] = 0
    return subject.ops.locate(slots, torch.tensor(numbers, device=subject.device), block_size)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("numbers", [[5], [300], [7, 0, 299], [*range(299, 99, -1)], [*range(128)], [1] * 129])
def test_each_slots_own_token_and_place(subject: Subject, numbers: list[int], block_size: int) -> None:
    found = located(subject, numbers, block_size)
    expected = []
    for slot in numbers:
        position = slot % (6 * block_size) if slot < 300 else 0
        block = 100 + 10 * slot - position // block_size if slot < 300 else 0
        token = slot * 3 if slot < 300 else 0
        expected.append((token, position, block * block_size + position % block_size, position + 1))
    fields = (found.tokens, found.positions, found.places, found.lengths)
    assert list(zip(*(field.tolist() for field in fields), strict=True)) == expected
    assert [field.dtype for field in fields] == [torch.int64] * 3 + [torch.int32]


def test_the_slots_stay_as_they_are(kernel_subject: Subject) -> None:
    slots = Slots(3, 2, 8, kernel_subject.device)
    slots.positions[:] = torch.tensor([4, 5, 6, 0])
    kernel_subject.ops.locate(slots, torch.tensor([2, 0], device=kernel_subject.device), 16)
    assert slots.positions.tolist() == [4, 5, 6, 0]
    assert not slots.tables.any()
