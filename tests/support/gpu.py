"""Whether this machine has an NVIDIA GPU, told before torch or Triton is imported: both read the environment then."""

import re
from pathlib import Path

_DEVICE = re.compile(r"nvidia[0-9]+")


def has_gpu_device(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU's device file is there, whatever its number: a pod may be given the fourth GPU alone."""
    return any(_DEVICE.fullmatch(path.name) for path in devices.glob("nvidia[0-9]*"))
