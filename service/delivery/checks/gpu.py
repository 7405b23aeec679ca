"""Checks of the GPU: driver, CUDA, generation, and whether the model fits."""

from dataclasses import replace
from pathlib import Path

from service.delivery.checks.finding import Finding, State, fail, ok, skip, warn
from service.delivery.checks.fit import GIB, Demand, Fit, FitOf, fit_of
from service.delivery.checks.nvidia_driver import LEAST_CAPABILITY, Gpu, NoDriver, NoGpu, read_gpu, torch_cuda
from service.delivery.checks.remedies import quantized, remedies
from service.delivery.failures import DeliveryFailed
from service.delivery.symptoms import failure_of
from service.errors import ConfigurationError
from service.settings import Settings

DRIVERS = {12: 525, 13: 580}
"""The least for a CUDA of this major version. Source: CUDA Toolkit Release Notes, "CUDA Toolkit Driver Versions"."""

DEVICES = Path("/dev")
NAMES = ("NVIDIA driver", "CUDA", "compute capability", "GPU memory")
NUMBER_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}


def check_gpu(settings: Settings, model_dir: Path | None) -> list[Finding]:
    """All that can be said of the GPU; skipped where none is to be used."""
    if settings.device == "cpu" or settings.engine == "fake":
        return [skip(name, f"INTERNLM_{'DEVICE=cpu' if settings.device == 'cpu' else 'ENGINE=fake'}") for name in NAMES]
    try:
        gpu = read_gpu()
    except NoGpu as reason:
        return [_without_gpu(settings, reason), *(skip(name, "no GPU") for name in NAMES[1:])]
    return [
        ok(NAMES[0], f"{gpu.driver}, {gpu.name}"),
        _cuda(gpu),
        _capability(gpu, settings),
        _memory(gpu, settings, model_dir),
    ]


def _without_gpu(settings: Settings, why: NoGpu) -> Finding:
    reason = str(why)
    remedy = "give the pod a GPU (nvidia.com/gpu: 1) and the node a driver, or set INTERNLM_DEVICE=cpu"
    if isinstance(why, NoDriver) and any(DEVICES.glob("nvidia[0-9]*")):
        reason += "; a GPU's device is here all the same"
        remedy = (
            "have NVIDIA's container runtime bring the driver's libraries (the chart's gpu.runtimeClassName), or name "
            "the folder they are mounted to in LD_LIBRARY_PATH"
        )
    if settings.device == "cuda":
        return fail(NAMES[0], reason, remedy, "INTERNLM_DEVICE")
    return warn(NAMES[0], f"{reason}; the CPU will be used", remedy)


def _cuda(gpu: Gpu) -> Finding:
    built = torch_cuda()
    found = f"driver up to {gpu.cuda[0]}.{gpu.cuda[1]}"
    if built is None:
        return warn(NAMES[1], f"{found}; the installed torch is built without CUDA", "use the GPU image")
    found += f", torch built with {built[0]}.{built[1]}"
    # Minor versions are compatible within a major one (CUDA Compatibility, "minor version compatibility").
    if gpu.cuda[0] < built[0]:
        least = f", {DRIVERS[built[0]]} or later" if built[0] in DRIVERS else ""
        return fail(NAMES[1], found, f"install a driver for CUDA {built[0]}{least}, on the node")
    return ok(NAMES[1], found)


def _capability(gpu: Gpu, settings: Settings) -> Finding:
    major, minor = gpu.capability
    found = f"{major}.{minor}; bfloat16: {_yes(gpu.has_bfloat16)}, fp8: {_yes(gpu.has_fp8)}"
    if gpu.capability < LEAST_CAPABILITY:
        return fail(NAMES[2], found, "use a GPU of the Turing generation or later")
    if settings.dtype == "bfloat16" and not gpu.has_bfloat16:
        return fail(NAMES[2], found, "set INTERNLM_DTYPE=float16", "INTERNLM_DTYPE")
    return ok(NAMES[2], found)


def _memory(gpu: Gpu, settings: Settings, model_dir: Path | None) -> Finding:
    if model_dir is None:
        return skip(NAMES[3], "no model directory")
    if gpu.memory is None:
        return skip(NAMES[3], "the driver does not tell it to this process; the engine judges it when it starts")
    try:
        fit = fit_of(model_dir)
    except (ConfigurationError, DeliveryFailed, OSError) as error:
        return skip(NAMES[3], failure_of(error, f"reading {model_dir}").what)
    return judge_fit(settings, fit, gpu.memory.free, gpu.memory.total)


def judge_fit(settings: Settings, fit_of_model: FitOf, free: int, total: int) -> Finding:
    """What the engine will make of the model on a GPU of which so many bytes are free.

    A context that was asked for must fit; the default is "at most" and may shrink, as may any to the cache that was
    asked for, or to what other processes leave.
    """
    demand = Demand.on_gpu(settings, NUMBER_BYTES[settings.dtype], total)
    demand = replace(demand, can_quantize=settings.engine == "native")
    now, alone = (fit_of_model(demand, bytes_, total) for bytes_ in (free, total))
    if not alone.is_enough:
        found = f"{alone.summary}: {alone.missing / GIB:.1f} GiB short"
        ways_out = remedies(demand, lambda other: fit_of_model(other, total, total), total)
        setting = "INTERNLM_KV_CACHE_TOKENS" if settings.kv_cache_tokens else "INTERNLM_GPU_MEMORY_FRACTION"
        return fail(NAMES[3], found, ways_out, setting)
    if not alone.is_whole and "max_context" in settings.model_fields_set:
        return replace(_shrunk(alone, f"set INTERNLM_MAX_CONTEXT={alone.tokens}"), state=State.FAIL)
    if now.grade < alone.grade:
        remedy = "free the GPU: another process holds its memory"
        held = _shrunk(now, remedy) if now.is_enough else fail(NAMES[3], f"{now.summary}: too little is free", remedy)
        return replace(held, transient=True)
    if not now.is_whole:
        eight_bits = quantized(demand, lambda other: fit_of_model(other, free, total), lambda fit: fit.is_whole)
        return _shrunk(now, " or ".join([f"set INTERNLM_MAX_CONTEXT={now.tokens}", *eight_bits]))
    return ok(NAMES[3], f"{now.summary}; {now.capacity}")


def _shrunk(fit: Fit, remedy: str) -> Finding:
    found = f"{fit.summary}: room for {fit.longest:,} tokens"
    return Finding(NAMES[3], State.WARN, found, remedy, "INTERNLM_MAX_CONTEXT")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
