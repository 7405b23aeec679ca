"""What every attention of one step needs to know of its sequences, and the sizes it is made for."""

from dataclasses import dataclass

import torch

CHUNK_QUERIES = 8
"""Most queries of a row of a chunk's attention: with a group of 16 heads they fill a tensor-core tile of 128."""
USUAL_ROWS = 512
"""Attentions of up to this many rows share one compiled plan."""


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """Each sequence's last token and where its KV goes, [T]: a place is block * block_size + offset."""

    tokens: torch.Tensor  # int64
    positions: torch.Tensor  # int64
    places: torch.Tensor  # int64
    lengths: torch.Tensor  # int32, tokens to attend to, this one included


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """Where the sequences of one decode step keep their KV; made once a step and shared by all layers.

    `work` is a kernel's own division of the lengths (see decode_attention), None on the torch path.
    """

    block_tables: torch.Tensor  # int32 [slots, max_blocks]
    slots: torch.Tensor  # int64 [T], rows of block_tables
    lengths: torch.Tensor  # int32 [T], tokens to attend to, the new one included
    work: tuple[torch.Tensor, ...] | None = None
