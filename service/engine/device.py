"""What this machine offers: the device, its dtype, cores, memory. Containers' limits count, not the host's sizes."""

import logging
import os
from pathlib import Path
from typing import Any

import pynvml
import torch

from service.delivery.checks.nvidia_driver import BFLOAT16_CAPABILITY
from service.engine.base import GpuMemory
from service.errors import ConfigurationError

logger = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits (cgroup v2)."""


def choose_device(name: str) -> torch.device:
    """The device for a `device` setting: auto, cpu or cuda. Raises ConfigurationError for cuda without a GPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigurationError("INTERNLM_DEVICE=cuda, but torch sees no GPU; set it to cpu or give the pod a GPU")
    return torch.device("cuda", torch.cuda.current_device()) if available and name != "cpu" else torch.device("cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype for a `dtype` setting. auto: bfloat16 on Ampere and later, float16 on older GPUs, float32 on a CPU."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY else torch.float16


def upload(values: list[int] | list[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor [N] on the device, without waiting for it: only a copy from pinned memory is not waited for."""
    return to_device(torch.tensor(values, dtype=dtype), device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor in main memory as one on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def usable_cores(cgroup: Path = CGROUP) -> int:
    """CPU cores this process may use: its affinity, and its container's quota, rounded up."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if not (quota.isdigit() and period.isdigit()):
        return cores
    return max(1, min(cores, -(-int(quota) // int(period))))


def available_memory(cgroup: Path = CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes of main memory this process can still take, by the machine and by its container's limit."""
    lines = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        available = min(available, max(0, int(limit) - int(used) + _reclaimable(cgroup)))
    return available


def _reclaimable(cgroup: Path) -> int:
    """Page cache that counts as used but makes way: a model's files, just read, are most of it."""
    stat = dict(line.split(" ", 1) for line in _read(cgroup / "memory.stat").splitlines())
    return int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


class GpuGauge:
    """Reads the memory of one GPU: the device's from NVML, or from CUDA where NVML does not know it (a MIG slice whose
    name it refuses, a container without the library), this process's from torch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        self._index = device.index or 0
        self._name = str(properties.name)
        self._handle = _nvml_handle(str(properties.uuid))

    def __call__(self) -> list[GpuMemory]:
        free, total = self._free_and_total()
        return [
            GpuMemory(
                index=self._index,
                name=self._name,
                total=total,
                used=total - free,
                allocated=torch.cuda.memory_allocated(self._device),
                reserved=torch.cuda.memory_reserved(self._device),
            )
        ]

    def _free_and_total(self) -> tuple[int, int]:
        if self._handle is None:
            return torch.cuda.mem_get_info(self._device)
        memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return int(memory.total) - int(memory.used), int(memory.total)


def _nvml_handle(uuid: str) -> Any:
    """NVML's handle of a GPU or MIG slice, None when it has none. By UUID: NVML counts the machine's GPUs, torch only
    those that CUDA_VISIBLE_DEVICES lets through."""
    for prefix in ("GPU-", "MIG-"):
        try:
            pynvml.nvmlInit()
            return pynvml.nvmlDeviceGetHandleByUUID(f"{prefix}{uuid}".encode())
        except pynvml.NVMLError as error:
            logger.info("NVML knows no %s%s: %s", prefix, uuid, error)
    return None
