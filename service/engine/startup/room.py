"""Whether the model fits the GPU, known before its weights are read; a predecessor's memory is waited for."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.delivery.checks.fit import Demand, Fit, FitOf, fit_of
from service.delivery.checks.remedies import remedies
from service.delivery.failures import DeliveryFailed
from service.engine.base import EngineConfig
from service.engine.startup.predecessor import NEIGHBOUR_SECONDS, PREDECESSOR_SECONDS, once_free
from service.errors import ConfigurationError, EngineFailed

logger = logging.getLogger(__name__)

OWN_CONTEXT_BYTES = 512 << 20
"""What this process's CUDA context holds already; the fit counts it as still to come."""

Memory = Callable[[], tuple[int, int]]
"""Free and total bytes of the GPU."""


def require_room(
    config: EngineConfig,
    number_bytes: int,
    memory: Memory,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Fit:
    """The fit of the model on the GPU, once no other process's memory makes it worse.

    Raises ConfigurationError, naming the settings that would fit, when it would not fit an empty GPU; EngineFailed when
    another process holds the memory for too long.
    """
    fit = _fit_of(Path(config.model_dir))

    def look() -> _Sight:
        free, total = memory()
        demand = Demand.on_gpu(config, number_bytes, total)
        return fit(demand, free + OWN_CONTEXT_BYTES, total), fit(demand, total, total), total

    now, alone, total = once_free(look, _in_the_way, _patience, clock, sleep)
    if now.is_enough:
        if not now.is_whole:
            logger.warning("requests may have %s tokens at most: %s", now.longest, now.summary)
        return now
    if alone.is_enough:
        raise EngineFailed(f"another process holds the GPU's memory: {now.summary}")
    demand = Demand.on_gpu(config, number_bytes, total)
    ways_out = remedies(demand, lambda other: fit(other, total, total), total)
    raise ConfigurationError(f"the model does not fit the GPU: {alone.summary}; {ways_out}")


_Sight = tuple[Fit, Fit, int]
"""The fit on the GPU as it is, and on the GPU alone; the GPU's bytes."""


def _in_the_way(sight: _Sight) -> str:
    now, alone, _ = sight
    return now.summary if now.grade < alone.grade else ""


def _patience(sight: _Sight) -> float:
    return NEIGHBOUR_SECONDS if sight[0].is_enough else PREDECESSOR_SECONDS


def _fit_of(model_dir: Path) -> FitOf:
    try:
        return fit_of(model_dir)
    except (DeliveryFailed, OSError) as error:
        raise ConfigurationError(f"{model_dir}: {error}") from error
