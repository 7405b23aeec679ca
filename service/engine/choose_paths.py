"""Decides what serves on this device. On a GPU every fast path is compared with the plain one first, and what fails is
replaced and named; a CPU has one path only."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from service.engine.attention import ChunkSpan, PagedCache, PrefillAttention
from service.engine.flash import FLASH_PAGE, FlashDecode, FlashPrefillAttention, Varlen
from service.engine.graphs import buckets_for
from service.engine.kernels import checks
from service.engine.kernels.checks import Candidate, ServedShapes, require_close
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import Proof, prove, prove_candidates
from service.engine.paths import Paths, PrefillFactory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves; `degraded` names every fast path that does not, with its reason."""

    paths: Paths
    block_size: int
    degraded: list[str]


def choose_paths(shapes: ServedShapes, max_running: int) -> Choice:
    """The fastest paths that proved right for the served shapes. Raises EngineFailed for an unusable device."""
    if shapes.device.type != "cuda":
        return Choice(Paths(), shapes.block_size, [])
    return assemble(prove(shapes), shapes, max_running)


def assemble(proof: Proof, shapes: ServedShapes, max_running: int, varlen: Varlen | None = None) -> Choice:
    """Paths from the kernels that proved right. `varlen` stands in for the flash kernel where there is none."""
    prefill: PrefillFactory = partial(FlashPrefillAttention, varlen=varlen) if varlen else FlashPrefillAttention
    degraded, block_size, ops = list(proof.degraded), shapes.block_size, proof.ops
    has_decode = ops.decode_attention is not Ops().decode_attention
    if not has_decode:
        block_size = -(-shapes.block_size // FLASH_PAGE) * FLASH_PAGE
        ops, reasons = _with_flash_decode(ops, replace(shapes, block_size=block_size), varlen)
        has_decode, degraded = not reasons, degraded + reasons
        block_size = block_size if has_decode else shapes.block_size
    reasons = _failing("flash_prefill", partial(check_prefill, prefill), shapes)
    paths = Paths(
        ops=ops,
        prefill=PrefillAttention if reasons else prefill,
        plans_decode=has_decode,
        buckets=buckets_for(max_running) if has_decode else (),
    )
    return Choice(paths, block_size, degraded + reasons)


def _with_flash_decode(ops: Ops, shapes: ServedShapes, varlen: Varlen | None) -> tuple[Ops, list[str]]:
    longest = shapes.config.max_positions
    flash = FlashDecode(longest, varlen) if varlen else FlashDecode(longest)
    fields = {"plan_decode": flash.plan, "decode_attention": flash.attend}
    proof = prove_candidates([Candidate("flash_decode", fields, checks.check_decode_attention)], shapes, ops)
    return proof.ops, proof.degraded


def _failing(name: str, check: Callable[[ServedShapes], None], shapes: ServedShapes) -> list[str]:
    """Why the path is wrong for these shapes; [] when it is right."""
    candidate = Candidate(name, {}, lambda _, served: check(served))
    return prove_candidates([candidate], shapes, Ops()).degraded


def check_prefill(factory: PrefillFactory, shapes: ServedShapes) -> None:
    """Prompts from their beginning alone; and beside one that continues a cached prefix. Raises Disagreement."""
    size = shapes.block_size
    for bounds in ([(0, 3), (0, 1), (0, size + 5)], [(0, 7), (2 * size, 3 * size - 1), (size + 1, 2 * size + 9)]):
        kept = [(start, min(end, shapes.config.max_positions)) for start, end in bounds]
        expected = _attended(PrefillAttention, replace(shapes, dtype=torch.float32), shapes.dtype, kept)
        require_close("flash_prefill", _attended(factory, shapes, shapes.dtype, kept), expected, shapes.dtype)


def _attended(
    factory: PrefillFactory, shapes: ServedShapes, rounded: torch.dtype, bounds: list[tuple[int, int]]
) -> torch.Tensor:
    """[T, heads, head_dim] of chunks of random sequences, whose numbers are those of the type `rounded`."""
    c, size = replace(shapes.config, num_layers=1), shapes.block_size
    cache = PagedCache(c, 1 + sum(-(-end // size) for _, end in bounds), size, shapes.device, shapes.dtype)
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(torch.nan)
    rows, spans, places, first, block = [], [], [], 0, 1
    for start, end in bounds:
        held = replace(shapes, dtype=rounded).random(2, end, c.num_kv_heads, c.head_dim).to(shapes.dtype)
        blocks = torch.arange(block, block + -(-end // size), device=shapes.device)
        at = (blocks[:, None] * size + torch.arange(size, device=shapes.device)).flatten()[:end]
        cache.keys[0].flatten(0, 1).index_copy_(0, at, held[0])
        cache.values[0].flatten(0, 1).index_copy_(0, at, held[1])
        spans.append(ChunkSpan(first, first + end - start, end, blocks.int()))
        rows.append(held[:, start:])
        places.append(at[start:])
        first, block = first + end - start, block + blocks.shape[0]
    q = replace(shapes, dtype=rounded).random(first, c.num_heads, c.head_dim).to(shapes.dtype)
    k, v = torch.cat(rows, dim=1)
    return factory(cache, torch.cat(places), spans)(0, q, k, v)
