"""How many tokens the KV cache holds, how many requests run at once, how long a sequence may get."""

from dataclasses import dataclass

import torch

from service.delivery.checks.fit import kv_bytes_per_token
from service.engine.base import EngineConfig
from service.engine.config import ModelConfig
from service.engine.defaults import RUNNING_ON_CPU, RUNNING_ON_GPU, STEP_TOKENS_ON_CPU, step_tokens_on_gpu
from service.engine.device import available_memory
from service.errors import ConfigurationError

CPU_CACHE_SHARE = 0.25
"""Share of the free main memory a CPU's cache may grow to: the rest is for weights read lazily and for others."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Capacity:
    """`num_blocks` counts the scratch block, which no sequence gets."""

    num_blocks: int
    max_running: int
    max_context: int


def running_limit(config: EngineConfig, device: torch.device) -> int:
    """How many requests run at once."""
    return config.max_running or (RUNNING_ON_GPU if device.type == "cuda" else RUNNING_ON_CPU)


def step_limit(config: EngineConfig, device: torch.device) -> int:
    """How many tokens a step computes."""
    if config.step_tokens:
        return config.step_tokens
    if device.type != "cuda":
        return STEP_TOKENS_ON_CPU
    _, total = torch.cuda.mem_get_info(device)
    return step_tokens_on_gpu(total)


def plan_capacity(
    config: EngineConfig, model: ModelConfig, device: torch.device, dtype: torch.dtype, step_bytes: int = 0
) -> Capacity:
    """What fits beside the weights, which must be loaded. `step_bytes`: what steps were seen to need of a GPU; a CPU's
    cache takes a share that leaves them room.

    Raises ConfigurationError when not even two blocks fit, with the numbers and the settings that help.
    """
    max_running = running_limit(config, device)
    max_context = min(config.max_context, model.max_positions)
    per_token = kv_bytes_per_token(model, dtype.itemsize)
    room = _room(config, device, step_bytes) // per_token
    # More than every running request at its longest is of use only to the prefix cache, which a GPU has room for.
    wanted = room if device.type == "cuda" else min(room, max_running * max_context)
    blocks = -(-config.kv_cache_tokens // config.block_size) or wanted // config.block_size
    if blocks < 1 or blocks * config.block_size > room:
        raise ConfigurationError(_too_small(config, room, per_token, blocks * config.block_size))
    return Capacity(blocks + 1, max_running, min(max_context, blocks * config.block_size))


def _room(config: EngineConfig, device: torch.device, step_bytes: int) -> int:
    """Bytes the cache may take."""
    if device.type != "cuda":
        share = 1.0 if config.kv_cache_tokens else CPU_CACHE_SHARE
        return int(available_memory() * share)
    free, total = torch.cuda.mem_get_info(device)
    return int(free - total * (1 - config.gpu_memory_fraction)) - step_bytes


def _too_small(config: EngineConfig, room: int, per_token: int, wanted: int) -> str:
    whole = max(room, 0) // config.block_size * config.block_size
    smaller_cache = f"set INTERNLM_KV_CACHE_TOKENS={whole}"
    more_room = (
        "lower INTERNLM_MAX_RUNNING or INTERNLM_STEP_TOKENS, raise INTERNLM_GPU_MEMORY_FRACTION, or give it more memory"
    )
    return (
        f"the KV cache needs room for {max(wanted, config.block_size)} tokens of {per_token} bytes each, and there is "
        f"room for {max(room, 0)} ({max(room, 0) * per_token // MIB} MiB); {smaller_cache if whole else more_room}"
    )
