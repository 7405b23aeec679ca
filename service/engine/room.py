"""Whether the model fits the GPU, known before its weights are read; a predecessor's memory is waited for."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from service.delivery.failures import DeliveryFailed
from service.delivery.fit import BLOCK_TOKENS, Demand, Fit, compute_fit, count_elements, read_shape
from service.engine.base import EngineConfig
from service.engine.capacity import RUNNING_ON_GPU
from service.errors import ConfigurationError, EngineFailed

logger = logging.getLogger(__name__)

PREDECESSOR_SECONDS = 60.0
"""How long another process may take to give the GPU's memory back: one that was killed is gone by then."""
POLL_SECONDS = 0.5
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
    deadline = clock() + PREDECESSOR_SECONDS
    while True:
        free, total = memory()
        fit = judge(free + OWN_CONTEXT_BYTES, total)
        if fit.tokens >= BLOCK_TOKENS:
            return fit
        if judge(total, total).tokens < BLOCK_TOKENS:
            raise ConfigurationError(_too_large(fit))
        if clock() >= deadline:
            raise EngineFailed(f"another process holds the GPU's memory: {fit.summary}")
        logger.info("waiting for another process to give the GPU's memory back: %s", fit.summary)
        sleep(POLL_SECONDS)


def _judge(config: EngineConfig, number_bytes: int) -> Callable[[int, int], Fit]:
    demand = Demand(
        max_context=config.max_context,
        running=config.max_running or RUNNING_ON_GPU,
        step_tokens=config.step_tokens,
        memory_fraction=config.gpu_memory_fraction,
        number_bytes=number_bytes,
    )
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
