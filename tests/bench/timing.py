"""The memory bandwidth to hold timings against."""

import torch

from service.engine.kernels.stopwatch import seconds


def read_bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of the better of a large copy (read and written bytes) and a large sum (read bytes)."""
    data = torch.randn(size // 4, device=device)
    target = torch.empty_like(data)
    copied = 2 * data.nbytes / seconds([lambda: target.copy_(data)], device)
    return max(copied, data.nbytes / seconds([lambda: data.sum()], device))
