"""What NVIDIA's driver says of the GPU, without torch and without creating a CUDA context."""

import os
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

BFLOAT16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
LEAST_CAPABILITY = (7, 5)
"""Turing: older GPUs are not in the CUDA 13 builds of torch any more."""

_CUDA_OF_TORCH = re.compile(r"^(?:nvidia-cuda-runtime|cuda-toolkit)[^=;]*==\s*(\d+)\.(\d+)")


class NoGpu(Exception):
    """There is no GPU this process could use; says why."""


@dataclass(frozen=True)
class Gpu:
    """One GPU. Memory is in bytes; `cuda` is the newest CUDA the driver speaks."""

    name: str
    driver: str
    cuda: tuple[int, int]
    capability: tuple[int, int]
    total: int
    free: int

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= BFLOAT16_CAPABILITY

    @property
    def has_fp8(self) -> bool:
        return self.capability >= FP8_CAPABILITY


def read_gpu() -> Gpu:
    """The GPU the engine would use: the first that CUDA_VISIBLE_DEVICES lets through. Raises NoGpu."""
    try:
        import pynvml as nvml
    except ImportError:
        raise NoGpu("no NVIDIA driver: the NVML bindings (nvidia-ml-py) are not installed") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoGpu(f"no NVIDIA driver: {error}") from None
    try:
        return _read(nvml, _handle(nvml))
    except nvml.NVMLError as error:
        raise NoGpu(f"the NVIDIA driver finds no usable GPU: {error}") from None
    finally:
        nvml.nvmlShutdown()


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA the installed torch was built with, from its metadata; None for a build without, or without torch."""
    try:
        requirements = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    found = (_CUDA_OF_TORCH.match(requirement) for requirement in requirements)
    return next(((int(match[1]), int(match[2])) for match in found if match), None)


def _handle(nvml: Any) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return nvml.nvmlDeviceGetHandleByIndex(0)
    first = visible.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first.encode())
    if not first.isdigit():
        raise NoGpu(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU")
    return nvml.nvmlDeviceGetHandleByIndex(int(first))


def _read(nvml: Any, handle: Any) -> Gpu:
    cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(handle)),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        capability=(int(major), int(minor)),
        total=int(memory.total),
        free=int(memory.free),
    )
