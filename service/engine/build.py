"""Builds the engine's core from its configuration: device, weights, cache, runner, each phase timed and reported."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from service.engine.attention import PagedCache
from service.engine.base import Core, EngineConfig, EngineInfo, GpuMemory
from service.engine.capacity import plan_capacity
from service.engine.config import read_config
from service.engine.core import NativeCore
from service.engine.device import GpuGauge, choose_device, choose_dtype, usable_cores
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.weights import load_weights, open_checked
from service.errors import ConfigurationError

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]


class Phases:
    """Says what the start-up is doing and remembers how long each part took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, message: str) -> Iterator[None]:
        """One phase: `message` goes to the progress before it, its time under `name` after it."""
        self._progress(message)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 3)


def build_core(config: EngineConfig, progress: Progress) -> Core:
    """The core that `config.kind` names: native or reference. Takes as long as reading the weights.

    Raises ConfigurationError when the model directory or a setting cannot work.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    torch.set_num_threads(config.threads or usable_cores())
    phases = Phases(progress)
    if config.kind == "native":
        return _build_native(config, device, dtype, phases)
    if config.kind == "reference":
        return _build_reference(config, device, dtype, phases)
    raise ConfigurationError(f"INTERNLM_ENGINE={config.kind} is not an engine that runs a model: native or reference")


def _build_native(config: EngineConfig, device: torch.device, dtype: torch.dtype, phases: Phases) -> Core:
    model_dir = Path(config.model_dir)
    model_config = read_config(model_dir)
    with phases("weights", f"reading the weights in {model_dir}"):
        weights, report = load_weights(model_dir, model_config, device, dtype)
    logger.info(
        "read %.2f GB of weights in %.1f s, %.2f GB/s",
        report.bytes_read / 1e9,
        report.seconds,
        report.gigabytes_per_second,
    )
    with phases("kv_cache", "allocating the KV cache"):
        capacity = plan_capacity(config, model_config, device, dtype)
        cache = PagedCache(model_config, capacity.num_blocks, config.block_size, device, dtype)
        model = Model(model_config, weights, capacity.max_context)
        runner = TorchRunner(model, cache, capacity.max_running, capacity.max_context)
    info = EngineInfo(
        kind=config.kind,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        max_context=capacity.max_context,
        max_running=capacity.max_running,
        vocab_size=model_config.vocab_size,
        versions={"torch": str(torch.__version__)},
        startup_seconds=phases.seconds,
    )
    logger.info(
        "KV cache of %s tokens, %s requests at once",
        (capacity.num_blocks - 1) * config.block_size,
        capacity.max_running,
    )
    return NativeCore(runner, info, config, depth=int(device.type == "cuda"), gpu_memory=_gauge(device))


def _build_reference(config: EngineConfig, device: torch.device, dtype: torch.dtype, phases: Phases) -> Core:
    with phases("import", "importing transformers"):
        # Takes seconds, and no other engine needs it.
        from service.engine.generate import load_model
        from service.engine.reference import ReferenceCore
    model_config = read_config(Path(config.model_dir))
    # transformers fills tensors that are missing with random numbers and only warns.
    open_checked(Path(config.model_dir), model_config)
    with phases("weights", f"reading the weights in {config.model_dir} with transformers"):
        model = load_model(Path(config.model_dir), device, dtype)
    info = EngineInfo(
        kind=config.kind,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        max_context=min(config.max_context, model_config.max_positions),
        max_running=1,
        vocab_size=model_config.vocab_size,
        versions={"torch": str(torch.__version__), "transformers": version("transformers")},
        startup_seconds=phases.seconds,
    )
    return ReferenceCore(model, info, config, gpu_memory=_gauge(device))


def _gauge(device: torch.device) -> Callable[[], list[GpuMemory]]:
    return GpuGauge(device) if device.type == "cuda" else list


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
