"""What counts as a device that lacks memory, as opposed to one that is broken."""

import torch

SIGNS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")
"""How libraries beside torch's allocator say it; a CUDA graph's launch, for one, allocates in the driver."""


def is_out_of_memory(error: BaseException) -> bool:
    """True of an error after which the device is sound and the same work may fit later."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)
