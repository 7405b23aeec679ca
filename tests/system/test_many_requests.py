"""A long life of the native engine on a CPU: thousands of requests later it holds no more than before them."""

import gc
import random
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from service.engine.base import Core, EngineConfig, Finish, SamplingParams
from service.engine.startup.build import build_core
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import drain
from tests.support.engines import GREEDY, a_request

SHAPE = Shape(hidden=32, intermediate=32, layers=1, heads=2, kv_heads=1, vocab=64)
FIRST, MANY = 1000, 10_000
SHARED = [9] * 70
SAMPLED = SamplingParams(seed=1, repetition_penalty=1.1)
RESIDENT = 1 << 20
"""Bytes: a hundred a request. Measured were 8 KiB."""
PYTHON = 500
"""Blocks of Python's own allocator: one in twenty requests. Measured were 150, what is cached coming and going."""


def serve(core: Core, count: int, dice: random.Random) -> int:
    """So many requests of mixed lengths, a third of which are cancelled at some point; how many were."""
    open_ids: list[str] = []
    cancelled = 0
    for _ in range(count):
        own = [dice.randrange(8, SHAPE.vocab) for _ in range(dice.randrange(1, 120))]
        prompt = dice.choice(([], SHARED)) + own
        request = a_request(prompt, new=dice.randrange(1, 12), sampling=dice.choice((GREEDY, SAMPLED)))
        assert core.add(request) == []
        ended = {event.id for event in core.step() if isinstance(event, Finish)}
        open_ids = [id_ for id_ in (*open_ids, request.id) if id_ not in ended]
        if open_ids and dice.random() < 0.3:
            cancelled += len(core.cancel(open_ids.pop(dice.randrange(len(open_ids)))))
    drain(core, [])
    return cancelled


def held() -> tuple[int, int]:
    """Bytes of this process in memory, and blocks that Python's allocator has handed out."""
    gc.collect()
    return psutil.Process().memory_info().rss, sys.getallocatedblocks()


@pytest.mark.slow
def test_memory_is_flat_over_many_requests_of_mixed_lengths_with_cancels(
    tmp_path: Path, tell: Callable[[str], None]
) -> None:
    directory = str(write_checkpoint(tmp_path, SHAPE))
    config = EngineConfig(kind="native", model_dir=directory, device="cpu", threads=1, kv_cache_tokens=4096)
    core, dice = build_core(config, lambda message: None), random.Random(1)
    serve(core, FIRST, dice)
    before = held()
    cancelled = serve(core, MANY, dice)
    grown, blocks = (now - then for now, then in zip(held(), before, strict=True))
    tell(f"memory after {MANY} more requests: {grown} bytes and {blocks} of Python's blocks more")
    assert cancelled > MANY // 5
    assert core.stats().cached_tokens > 0
    assert grown < RESIDENT
    assert blocks < PYTHON
    assert core.stats().kv_blocks_used == 0
