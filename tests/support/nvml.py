"""A GPU that only exists as NVIDIA's management library would describe it."""

from collections.abc import Sequence
from types import SimpleNamespace

GIB = 1 << 30
CARD = "card"


class Nvml:
    """The library as its Python bindings offer it. `slices`: the GiB of each slice of a divided card, 0 for a place
    without one; then the card's own memory is not for a container to see."""

    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    class NVMLError_NoPermission(NVMLError):  # noqa: N801
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801
        pass

    def __init__(self, failing: str = "", free: int = 23 * GIB, slices: Sequence[int] | None = None) -> None:
        self.failing = failing
        self.free = free
        self.slices = slices
        self.asked: object = None

    def _maybe_fail(self, name: str) -> None:
        if self.failing == name:
            raise self.NVMLError(f"{name} failed")

    def nvmlInit(self) -> None:  # noqa: N802
        self._maybe_fail("nvmlInit")

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        self._maybe_fail("nvmlDeviceGetHandleByIndex")
        self.asked = index
        return CARD

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> object:  # noqa: N802
        self.asked = uuid
        return 0 if uuid.startswith(b"MIG-") else CARD

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: object) -> object:  # noqa: N802
        assert handle != CARD
        return CARD

    def nvmlDeviceGetMigMode(self, handle: object) -> list[int]:  # noqa: N802
        self._maybe_fail("nvmlDeviceGetMigMode")
        assert handle == CARD
        if self.slices is None:
            raise self.NVMLError_NotSupported("Not Supported")
        return [self.NVML_DEVICE_MIG_ENABLE, self.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, _: object) -> int:  # noqa: N802
        return len(self.slices or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: object, index: int) -> object:  # noqa: N802
        assert self.slices
        if not self.slices[index]:
            raise self.NVMLError("Not Found")
        return index

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12080

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.1"

    def nvmlDeviceGetName(self, handle: object) -> str:  # noqa: N802
        assert handle == CARD
        return "NVIDIA L4"

    def nvmlDeviceGetCudaComputeCapability(self, handle: object) -> tuple[int, int]:  # noqa: N802
        assert handle == CARD
        return 8, 9

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> object:  # noqa: N802
        if self.slices is None:
            return SimpleNamespace(total=24 * GIB, free=self.free)
        if not isinstance(handle, int):
            raise self.NVMLError_NoPermission("Insufficient Permissions")
        return SimpleNamespace(total=self.slices[handle] * GIB, free=self.slices[handle] * GIB)
