"""What would make a model fit a GPU that it does not fit: single settings with their values, or a larger GPU."""

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from service.delivery.checks.fit import GIB, Demand, Fit
from service.engine.defaults import BLOCK_TOKENS

MOST_FRACTION = 0.97
"""Beyond it no other process, and no fragment of the allocator's, has room."""

FitsHow = Callable[[Demand], Fit]
"""The fit of the one model on the one GPU with other settings."""
Goal = Callable[[Fit], bool]


@dataclass(frozen=True)
class Lowered:
    """A setting that takes less memory the lower it is, in steps of `step`, the least value; `frugal` serves well."""

    setting: str
    field: str
    step: int
    frugal: int


FRACTION = "INTERNLM_GPU_MEMORY_FRACTION"
QUANTIZATION = "INTERNLM_QUANTIZATION"
LOWERED = (
    Lowered("INTERNLM_KV_CACHE_TOKENS", "kv_cache_tokens", BLOCK_TOKENS, 0),
    Lowered("INTERNLM_MAX_RUNNING", "running", 1, 32),
    Lowered("INTERNLM_STEP_TOKENS", "step_tokens", BLOCK_TOKENS, 512),
    Lowered("INTERNLM_MAX_CONTEXT", "max_context", BLOCK_TOKENS, 8192),
)


def remedies(demand: Demand, fit: FitsHow, total: int) -> str:
    """The settings of which each alone would do, with the least change that does, and the GPU that would:
    `set INTERNLM_MAX_RUNNING=64 or INTERNLM_GPU_MEMORY_FRACTION=0.94, or use a GPU of 26 GiB`.

    To do is to hold a request of the whole context, or the cache that was asked for; where no setting does that, to
    hold any request. Where none does that either, several are named that do together. Quantization, which changes the
    answers a little, is named behind the others, or alone.
    """
    gpu = f"use a GPU of {math.ceil((total + fit(demand).missing / demand.memory_fraction) / GIB)} GiB"
    for is_good in (_is_whole, _is_enough):
        if settings := [*_lowered(demand, fit, is_good), *_raised(demand, fit, is_good)]:
            return f"set {' or '.join([*settings, *quantized(demand, fit, is_good)])}, or {gpu}"
    if settings := [*quantized(demand, fit, _is_enough)]:
        return f"set {settings[0]}, or {gpu}"
    if settings := _together(demand, fit):
        return f"no single setting makes it fit: set {' and '.join(settings)}, or {gpu}"
    return f"no setting makes it fit: {gpu}"


def _together(demand: Demand, fit: FitsHow) -> list[str]:
    """All that is not frugal, with values that are; none where even that is not enough."""
    lower = [each for each in LOWERED if getattr(demand, each.field) > each.frugal]
    lowered: dict[str, Any] = {each.field: each.frugal for each in lower}
    frugal = replace(demand, memory_fraction=MOST_FRACTION, **lowered)
    settings = [f"{FRACTION}={MOST_FRACTION}", *(f"{each.setting}={each.frugal}" for each in lower)]
    if fit(frugal).is_enough:
        return settings
    eight_bits = [*quantized(frugal, fit, _is_enough)]
    return [*eight_bits, *settings] if eight_bits else []


def quantized(demand: Demand, fit: FitsHow, is_good: Goal) -> Iterator[str]:
    """The setting of quantization, where it does and can still be set."""
    if demand.can_quantize and demand.quantization == "none" and is_good(fit(replace(demand, quantization="int8"))):
        yield f"{QUANTIZATION}=int8"


def _is_whole(fit: Fit) -> bool:
    return fit.is_whole


def _is_enough(fit: Fit) -> bool:
    return fit.is_enough


def _lowered(demand: Demand, fit: FitsHow, is_good: Goal) -> Iterator[str]:
    for each in LOWERED:
        values = range(each.step, getattr(demand, each.field), each.step)

        def is_too_much(value: int, field: str = each.field) -> bool:
            lowered: dict[str, Any] = {field: value}
            return not is_good(fit(replace(demand, **lowered)))

        count = bisect.bisect_left(values, True, key=is_too_much)
        if count:
            yield f"{each.setting}={values[count - 1]}"


def _raised(demand: Demand, fit: FitsHow, is_good: Goal) -> Iterator[str]:
    percents = range(math.floor(demand.memory_fraction * 100) + 1, round(MOST_FRACTION * 100) + 1)

    def is_enough(percent: int) -> bool:
        return is_good(fit(replace(demand, memory_fraction=percent / 100)))

    index = bisect.bisect_left(percents, True, key=is_enough)
    if index < len(percents):
        yield f"{FRACTION}={percents[index] / 100}"
