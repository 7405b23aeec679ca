"""What would make a model fit a GPU that it does not fit: single settings with their values, or a larger GPU."""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from service.delivery.fit import BLOCK_TOKENS, GIB, Demand, Fit

MOST_FRACTION = 0.97
"""Beyond it no other process, and no fragment of the allocator's, has room."""

FitsHow = Callable[[Demand], Fit]
"""The fit of the one model on the one GPU with other settings."""


@dataclass(frozen=True)
class Lowered:
    """A setting that takes less memory the lower it is, in steps of `step`, which is the least."""

    setting: str
    field: str
    step: int


LOWERED = (
    Lowered("INTERNLM_KV_CACHE_TOKENS", "kv_cache_tokens", BLOCK_TOKENS),
    Lowered("INTERNLM_MAX_RUNNING", "running", 1),
    Lowered("INTERNLM_STEP_TOKENS", "step_tokens", BLOCK_TOKENS),
    Lowered("INTERNLM_MAX_CONTEXT", "max_context", BLOCK_TOKENS),
)


def remedies(demand: Demand, fit: FitsHow, total: int) -> str:
    """The settings of which each alone would do, with the least change that does, and the GPU that would:
    `set INTERNLM_MAX_RUNNING=64 or INTERNLM_GPU_MEMORY_FRACTION=0.94, or use a GPU of 26 GiB`.

    To do is to hold a request of the whole context, or the cache that was asked for.
    """
    gpu = f"use a GPU of {math.ceil(_needed(fit(demand), demand, total) / GIB)} GiB"
    settings = [*_lowered(demand, fit), *_raised(demand, fit)]
    return f"set {' or '.join(settings)}, or {gpu}" if settings else f"no setting makes it fit: {gpu}"


def _lowered(demand: Demand, fit: FitsHow) -> Iterator[str]:
    for each in LOWERED:
        values = range(each.step, getattr(demand, each.field), each.step)

        def is_too_much(value: int, field: str = each.field) -> bool:
            return not fit(replace(demand, **{field: value})).is_whole

        count = bisect.bisect_left(values, True, key=is_too_much)
        if count:
            yield f"{each.setting}={values[count - 1]}"


def _raised(demand: Demand, fit: FitsHow) -> Iterator[str]:
    percents = range(math.floor(demand.memory_fraction * 100) + 1, round(MOST_FRACTION * 100) + 1)

    def is_whole(percent: int) -> bool:
        return fit(replace(demand, memory_fraction=percent / 100)).is_whole

    index = bisect.bisect_left(percents, True, key=is_whole)
    if index < len(percents):
        yield f"INTERNLM_GPU_MEMORY_FRACTION={percents[index] / 100}"


def _needed(fit: Fit, demand: Demand, total: int) -> float:
    """Bytes of an empty GPU of which the same fraction would do."""
    return total + (fit.wanted_tokens * fit.kv_per_token - fit.room) / demand.memory_fraction
