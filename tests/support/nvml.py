"""A GPU that only exists as NVIDIA's management library would describe it."""

from types import SimpleNamespace

GIB = 1 << 30


class Nvml:
    """NVIDIA's management library as its Python bindings offer it."""

    class NVMLError(Exception):
        pass

    def __init__(self, failing: str = "", free: int = 23 * GIB) -> None:
        self.failing = failing
        self.free = free
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
        return object()

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> object:  # noqa: N802
        self.asked = uuid
        return object()

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12080

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "570.1"

    def nvmlDeviceGetName(self, _: object) -> str:  # noqa: N802
        return "NVIDIA L4"

    def nvmlDeviceGetCudaComputeCapability(self, _: object) -> tuple[int, int]:  # noqa: N802
        return 8, 9

    def nvmlDeviceGetMemoryInfo(self, _: object) -> object:  # noqa: N802
        return SimpleNamespace(total=24 * GIB, free=self.free)
