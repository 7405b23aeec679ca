"""Where each sequence of a decode stands, read from its slot in one launch instead of ten small ones."""
# mypy: disable-error-code="untyped-decorator"

import torch
import triton
import triton.language as tl

from service.engine.kernels.batch import DecodeInputs
from service.engine.kernels.overlap import launch_options, wait_for_inputs
from service.engine.steps.slots import Slots

BLOCK = 128


@triton.jit(do_not_specialize=["rows", "table_stride"])
def locate_kernel(
    slots: tl.tensor,
    slot_tokens: tl.tensor,
    slot_positions: tl.tensor,
    block_tables: tl.tensor,
    tokens: tl.tensor,
    positions: tl.tensor,
    places: tl.tensor,
    lengths: tl.tensor,
    rows: int,
    table_stride: int,
    OVERLAPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    slot = tl.load(slots + row, mask=inside, other=0)
    position = tl.load(slot_positions + slot, mask=inside, other=0)
    block = tl.load(block_tables + slot * table_stride + position // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)
    tl.store(tokens + row, tl.load(slot_tokens + slot, mask=inside, other=0), mask=inside)
    tl.store(positions + row, position, mask=inside)
    tl.store(places + row, block * BLOCK_SIZE + position % BLOCK_SIZE, mask=inside)
    tl.store(lengths + row, (position + 1).to(tl.int32), mask=inside)


def locate(slots: Slots, numbers: torch.Tensor, block_size: int, *, overlaps: bool = False) -> DecodeInputs:
    """See `ops.Locate`."""
    tokens, positions, places = (torch.empty_like(numbers) for _ in range(3))
    lengths = torch.empty_like(numbers, dtype=torch.int32)
    rows = numbers.shape[0]
    locate_kernel[(triton.cdiv(rows, BLOCK),)](
        numbers,
        slots.tokens,
        slots.positions,
        slots.tables,
        tokens,
        positions,
        places,
        lengths,
        rows,
        slots.tables.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK=BLOCK,
        num_warps=4,
        **launch_options(overlaps),
    )
    return DecodeInputs(tokens, positions, places, lengths)
