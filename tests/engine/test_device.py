"""What is asked of a GPU's driver when there is none, or when NVML does not know the slice that torch computes on."""

from typing import Any

import pynvml
import pytest
import torch

from service.engine import device
from service.engine.device import GpuGauge, choose_dtype, upload
from service.engine.device_errors import is_out_of_memory

UUID = "11112222-3333-4444-5555-666677778888"


class Properties:
    name = "NVIDIA A100 MIG 3g.40gb"
    uuid = UUID


class Memory:
    total, used = 1000, 400


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU as torch would see it."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (300, 900))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 7)
    return monkeypatch


def nvml_that_knows(monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    def handle(uuid: bytes) -> Any:
        if uuid.decode() != known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return known

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: Memory())


@pytest.mark.parametrize(
    ("known", "total", "used"), [(f"GPU-{UUID}", 1000, 400), (f"MIG-{UUID}", 1000, 400), ("another", 900, 600)]
)
def test_memory_is_read_of_a_gpu_a_slice_and_what_nvml_does_not_know(
    gpu: pytest.MonkeyPatch, known: str, total: int, used: int
) -> None:
    nvml_that_knows(gpu, known)
    (memory,) = GpuGauge(torch.device("cuda", 0))()
    assert (memory.name, memory.total, memory.used) == (Properties.name, total, used)
    assert (memory.allocated, memory.reserved) == (5, 7)


def test_a_container_without_nvml_still_serves(gpu: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    gpu.setattr(device.pynvml, "nvmlInit", missing)
    (memory,) = GpuGauge(torch.device("cuda", 0))()
    assert (memory.total, memory.used) == (900, 600)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((8, 9), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_bfloat16_is_chosen_from_ampere_on_and_float16_before(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    asked: list[torch.device] = []

    def capability_of(device: torch.device) -> tuple[int, int]:
        asked.append(device)
        return capability

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability_of)
    card = torch.device("cuda", 1)
    assert choose_dtype("auto", card) == dtype
    assert asked == [card]
    assert choose_dtype("float32", card) == torch.float32
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32


def test_an_upload_to_the_cpu_is_the_tensor() -> None:
    assert upload([1, 2], torch.int32, torch.device("cpu")).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cudaErrorMemoryAllocation: the driver could not allocate for the launch"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_a_broken_device(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
