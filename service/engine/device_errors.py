"""What an error of the device means, and what is said of it."""

from collections.abc import Callable
from typing import TypeVar

import torch

from service.engine.steps.plan import OutOfMemory
from service.errors import EngineFailed, first_line

T = TypeVar("T")

SIGNS_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")
"""How libraries beside torch's allocator say it; a CUDA graph's launch, for one, allocates in the driver."""


def is_out_of_memory(error: BaseException) -> bool:
    """True of an error after which the device is sound and the same work may fit later."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS_OF_MEMORY)


def in_room(work: Callable[[], T]) -> T:
    """The result of `work`, which may be done twice: again with the allocator's spare memory given back. Raises
    OutOfMemory when it did not fit then, either."""
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    try:
        return work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(str(error)) from error


def require_usable(device: torch.device, culprit: str) -> None:
    """Raises EngineFailed when `culprit` poisoned the process's CUDA context, as an illegal access does for good."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise EngineFailed(f"{culprit} left {device} unusable: {first_line(error)}") from error
