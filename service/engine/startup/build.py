"""Builds the engine's core from its configuration: device, weights, cache, runner, each phase timed and reported."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import msgspec
import torch

from service.engine.base import Allowed, Core, EngineConfig, EngineInfo, GpuMemory, MatchingCore
from service.engine.checkpoint.read_ahead import reading_ahead
from service.engine.checkpoint.tensors import Checkpoint
from service.engine.config import read_config
from service.engine.core import NativeCore
from service.engine.cuda.choose_paths import choose_paths
from service.engine.cuda.recorder import CudaRecorder
from service.engine.device import GpuGauge, available_memory, choose_device, choose_dtype, usable_cores
from service.engine.grammars.compiler import GrammarCompiler
from service.engine.grammars.gate import GrammarGate
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.trials import Trials
from service.engine.model import Model
from service.engine.startup.build_runner import build_runner
from service.engine.startup.capacity import running_limit, step_limit
from service.engine.startup.phases import Phases, Progress
from service.engine.startup.room import require_room
from service.engine.startup.same_model import require_same_model
from service.engine.startup.warm_up import time_decodes
from service.engine.steps.pace import PrefillPace
from service.engine.weights import load_weights, open_checked
from service.errors import ConfigurationError

logger = logging.getLogger(__name__)


def build_core(config: EngineConfig, progress: Progress) -> Core:
    """The core that `config.kind` names: native or reference. Takes as long as reading the weights.

    Raises ConfigurationError when the model directory or a setting cannot work.
    """
    device = choose_device(config.device)
    config = msgspec.structs.replace(config, step_tokens=step_limit(config, device))
    dtype = choose_dtype(config.dtype, device)
    torch.set_num_threads(config.threads or usable_cores())
    phases = Phases(progress)
    if config.kind not in _BUILDERS:
        names = " or ".join(_BUILDERS)
        raise ConfigurationError(f"INTERNLM_ENGINE={config.kind} is not an engine that runs a model: {names}")
    require_same_model(config)
    model_config = read_config(Path(config.model_dir))
    compiler = GrammarCompiler(Path(config.model_dir), model_config.vocab_size, usable_cores())
    core = _BUILDERS[config.kind](config, device, dtype, phases, compiler.allowed)
    require_same_model(config)  # it may have been changed while it was read
    return GrammarGate(core, compiler.compile, config.max_queue)


def _build_native(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, phases: Phases, allowed: Allowed
) -> MatchingCore:
    if device.type == "cpu" and config.quantization != "none":
        logger.warning("a CPU widens quantized weights in every step: several times slower, for less memory")
    model_dir = Path(config.model_dir)
    model_config = read_config(model_dir)
    if device.type == "cuda":
        with phases("memory", "checking that the model fits the GPU"):
            require_room(config, dtype.itemsize, lambda: torch.cuda.mem_get_info(device))
    checkpoint = open_checked(model_dir, model_config)
    with phases("kernels", "choosing what to compute with"), _weights_ahead(checkpoint, device):
        trials = Trials(Path(config.trial_file) if config.trial_file else None)
        shapes = ServedShapes(model_config, config.block_size, dtype, device, trials, config.quantization)
        choice = choose_paths(shapes, running_limit(config, device))
    with phases("weights", f"reading the weights in {model_dir}"):
        weights, report = load_weights(checkpoint, model_config, device, dtype, config.quantization)
    logger.info("weights: %s", report)
    config = msgspec.structs.replace(config, block_size=choice.block_size)
    model = Model(model_config, weights, min(config.max_context, model_config.max_positions), choice.paths.ops)
    recorder = CudaRecorder(device) if device.type == "cuda" else None
    runner, capacity = build_runner(model, choice.paths, config, device, dtype, phases, recorder)
    recorded = [part.degraded for part in (runner.graphs, runner.segments) if part is not None]
    info = EngineInfo(
        kind=config.kind,
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        quantization=config.quantization,
        max_context=capacity.max_context,
        max_running=capacity.max_running,
        vocab_size=model_config.vocab_size,
        versions={"torch": str(torch.__version__)},
        degraded=[*choice.degraded, *chain.from_iterable(recorded)],
        startup_seconds=phases.seconds,
        weights_bytes_per_second=report.bytes_per_second,
    )
    tokens = (capacity.num_blocks - 1) * config.block_size
    logger.info("KV cache of %s tokens, %s requests at once", tokens, capacity.max_running)
    if device.type != "cuda":
        return NativeCore(runner, info, config, allowed=allowed)
    pace = PrefillPace(config.step_tokens, time_decodes(runner))
    return NativeCore(runner, info, config, depth=1, gpu_memory=_gauge(device), pace=pace, allowed=allowed)


def _weights_ahead(checkpoint: Checkpoint, device: torch.device) -> AbstractContextManager[None]:
    """Has the weights' files read while kernels are proved; a CPU has none to prove. Half of the free main memory holds
    what was read until it is needed."""
    if device.type != "cuda":
        return nullcontext()
    return reading_ahead(checkpoint.files, available_memory() // 2)


def _build_reference(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, phases: Phases, allowed: Allowed
) -> MatchingCore:
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
    return ReferenceCore(model, info, config, gpu_memory=_gauge(device), allowed=allowed)


_Build = Callable[[EngineConfig, torch.device, torch.dtype, Phases, Allowed], MatchingCore]
_BUILDERS: dict[str, _Build] = {"native": _build_native, "reference": _build_reference}


def _gauge(device: torch.device) -> Callable[[], list[GpuMemory]]:
    return GpuGauge(device) if device.type == "cuda" else list


def device_name(device: torch.device) -> str:
    """The GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
