"""Whether the model fits the GPU, known before its weights are read; a predecessor's memory is waited for."""

import time
from collections.abc import Callable
from pathlib import Path

from service.delivery.failures import DeliveryFailed
from service.delivery.fit import BLOCK_TOKENS, Demand, Fit, compute_fit, count_elements, read_shape
from service.delivery.predecessor import once_free
from service.engine.base import EngineConfig
from service.errors import ConfigurationError, EngineFailed

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
    """The fit of the model on the GPU, once there is room for it.

    Raises ConfigurationError, naming the settings that help, when it would not fit an empty GPU; EngineFailed when
    another process holds the memory for too long.
    """
    judge = _judge(config, number_bytes)

    def look() -> tuple[Fit, Fit]:
        free, total = memory()
        return judge(free + OWN_CONTEXT_BYTES, total), judge(total, total)

    now, alone = once_free(look, _in_the_way, clock, sleep)
    if now.tokens >= BLOCK_TOKENS:
        return now
    if alone.tokens < BLOCK_TOKENS:
        raise ConfigurationError(_too_large(now))
    raise EngineFailed(f"another process holds the GPU's memory: {now.summary}")


def _in_the_way(fits: tuple[Fit, Fit]) -> str:
    """`fits`: on the GPU as it is, and on the GPU alone."""
    now, alone = fits
    return now.summary if now.tokens < BLOCK_TOKENS <= alone.tokens else ""


def _judge(config: EngineConfig, number_bytes: int) -> Callable[[int, int], Fit]:
    demand = Demand.on_gpu(config, number_bytes)
    model_dir = Path(config.model_dir)
    try:
        shape, elements = read_shape(model_dir), count_elements(model_dir)
    except (DeliveryFailed, OSError) as error:
        raise ConfigurationError(f"{model_dir}: {error}") from error
    return lambda free, total: compute_fit(shape, elements, demand, free, total)


def _too_large(fit: Fit) -> str:
    return (
        f"the model does not fit the GPU: {fit.summary}; raise INTERNLM_GPU_MEMORY_FRACTION, lower "
        "INTERNLM_MAX_RUNNING or INTERNLM_STEP_TOKENS, or use a larger GPU"
    )
