"""What NVIDIA's driver says of the GPU, without torch and without creating a CUDA context."""

import os
import re
from contextlib import suppress
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


class NoDriver(NoGpu):
    """The driver's library cannot be loaded, or does not find its driver."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a GPU, or of the slice of it that is ours."""

    total: int
    free: int


@dataclass(frozen=True)
class Gpu:
    """One GPU. `cuda` is the newest CUDA the driver speaks; `memory` is None if it does not tell this process."""

    name: str
    driver: str
    cuda: tuple[int, int]
    capability: tuple[int, int]
    memory: Memory | None

    @property
    def has_bfloat16(self) -> bool:
        return self.capability >= BFLOAT16_CAPABILITY

    @property
    def has_fp8(self) -> bool:
        return self.capability >= FP8_CAPABILITY


def read_gpu() -> Gpu:
    """The GPU the engine would use: the first that CUDA_VISIBLE_DEVICES lets through, the first slice of it where it is
    divided (MIG). Raises NoGpu."""
    try:
        import pynvml as nvml
    except ImportError:
        raise NoGpu("no NVIDIA driver: the NVML bindings (nvidia-ml-py) are not installed") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise NoDriver(f"no NVIDIA driver: {error}") from None
    try:
        return _read(nvml, *_chosen(nvml))
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


def _chosen(nvml: Any) -> tuple[Any, Any]:
    """The card, and the part of it that is ours: a slice where it is divided (None: it shows none), else all of it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.startswith("MIG-"):
        part = nvml.nvmlDeviceGetHandleByUUID(first.encode())
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part), part
    if first.startswith("GPU-"):
        card = nvml.nvmlDeviceGetHandleByUUID(first.encode())
    elif first.isdigit():
        card = nvml.nvmlDeviceGetHandleByIndex(int(first))
    else:
        raise NoGpu(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU")
    return card, _first_slice(nvml, card) if _is_divided(nvml, card) else card


def _is_divided(nvml: Any, card: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(card)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
    except nvml.NVMLError:  # most generations cannot be divided, and older drivers do not know of it
        return False


def _first_slice(nvml: Any, card: Any) -> Any:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        with suppress(nvml.NVMLError):  # not there, or another container's
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, index)
    return None


def _read(nvml: Any, card: Any, part: Any) -> Gpu:
    cuda = int(nvml.nvmlSystemGetCudaDriverVersion_v2())
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(card)
    return Gpu(
        name=str(nvml.nvmlDeviceGetName(card)),
        driver=str(nvml.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        capability=(int(major), int(minor)),
        memory=None if part is None else _memory(nvml, part),
    )


def _memory(nvml: Any, part: Any) -> Memory | None:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(part)
    except (nvml.NVMLError_NoPermission, nvml.NVMLError_NotSupported):
        # A divided card's is not a container's to see that holds a slice; a chip that shares the host's has none.
        return None
    return Memory(int(memory.total), int(memory.free))
