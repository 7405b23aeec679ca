"""Builds the runner around loaded weights: a KV cache of what memory is left, and on a GPU recorded decodes."""

import torch

from service.engine.attention import PagedCache
from service.engine.base import EngineConfig
from service.engine.cuda.graphs import Recorder
from service.engine.cuda.paths import Paths
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.startup.capacity import Capacity, plan_capacity, running_limit
from service.engine.startup.phases import Phases
from service.engine.startup.warm_up import measure_step_bytes
from service.engine.steps.plan import OutOfMemory
from service.errors import ConfigurationError


def build_runner(
    model: Model,
    paths: Paths,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    phases: Phases,
    recorder: Recorder | None,
) -> tuple[TorchRunner, Capacity]:
    """The runner and what it has room for. A `recorder`, that of a GPU, has decodes recorded, and the cache sized by
    what the largest steps were seen to need.

    Raises ConfigurationError, with the settings that help, when a step or the cache does not fit.
    """

    def make(capacity: Capacity) -> TorchRunner:
        cache = PagedCache(model.config, capacity.num_blocks, config.block_size, device, dtype)
        return TorchRunner(model, cache, capacity.max_running, capacity.max_context, paths)

    step_bytes = 0
    if recorder is not None:
        longest = min(config.max_context, model.config.max_positions)
        smallest = Capacity(2, running_limit(config, device), longest)
        with phases("warm_up", "computing the largest steps once"):
            try:
                step_bytes = measure_step_bytes(device, lambda: make(smallest), config.step_tokens, longest)
            except OutOfMemory as error:
                raise ConfigurationError(
                    f"the largest step does not fit the GPU beside the weights ({error}); lower "
                    "INTERNLM_MAX_RUNNING, INTERNLM_STEP_TOKENS or INTERNLM_MAX_CONTEXT, or use a larger GPU"
                ) from error
    with phases("kv_cache", "allocating the KV cache"):
        capacity = plan_capacity(config, model.config, device, dtype, step_bytes)
        runner = make(capacity)
    if recorder is not None and paths.plans_decode:
        with phases("graphs", "recording decodes of every batch size"):
            runner.record(recorder)
        with phases("segments", "recording what steps with prompts share"):
            runner.record_segments(recorder, config.step_tokens)
    return runner, capacity
