"""A recording's way through CUDA's calls, on stand-ins that behave as torch's do when a capture fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.engine.cuda.recorder import CudaRecorder
from service.errors import EngineFailed

DEVICE = torch.device("cuda", 0)


class FakeCuda:
    """Streams, captures and pools by name. As in torch 2.13 a capture that fails at its end leaves its stream the
    current one, and its pool one that is captured into."""

    def __init__(self) -> None:
        self.current = "serving"
        self.said: list[str] = []
        self.captured: list[tuple[str, str]] = []  # each graph's pool and stream
        self.underway: set[str] = set()  # pools
        self.made = 0
        self.end_fails = self.is_poisoned = False

    def name(self, kind: str) -> str:
        """A name that nothing else has: two pools, or two streams, are told apart."""
        self.made += 1
        return f"{kind} {self.made}"

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Any, pool: str, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        if pool in self.underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.underway.add(pool)
        self.captured.append((pool, stream.name))
        before, self.current = self.current, stream.name
        self.said.append("capture")
        try:
            yield
        finally:
            if self.end_fails:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.underway.remove(pool)
            self.current = before

    def end_allocation(self, device: int, pool: str) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def set_stream(self, stream: Any) -> None:
        self.current = stream.name

    def synchronize(self, device: torch.device) -> None:
        if self.is_poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice for the debugger")
        self.said.append("synchronize")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()

    def side_stream(_: torch.device) -> SimpleNamespace:
        name = fake.name("side")
        return SimpleNamespace(name=name, wait_stream=lambda other: fake.said.append(f"wait for {other.name}"))

    stand_ins: dict[str, Any] = {
        "graph_pool_handle": lambda: fake.name("pool"),
        "Stream": side_stream,
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: fake.said.append("replay")),
        "current_stream": lambda _: SimpleNamespace(name=fake.current),
        **{name: getattr(fake, name) for name in ("stream", "graph", "set_stream", "synchronize")},
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", fake.end_allocation)
    return fake


def recorded(recorder: CudaRecorder, body: Callable[[], None]) -> Callable[[], None]:
    recorder.rehearse(body)
    return recorder.capture(body)


def test_a_body_is_rehearsed_and_captured_off_the_serving_stream(cuda: FakeCuda) -> None:
    ran_on: list[str] = []

    def body() -> None:
        cuda.said.append("body")
        ran_on.append(cuda.current)

    replay = recorded(CudaRecorder(DEVICE), body)
    replay()
    launched = ["capture", "body", "replay", "synchronize"]
    assert cuda.said == ["wait for serving", "body", "synchronize", *launched, "replay"]
    assert (ran_on, cuda.current) == ([cuda.captured[0][1]] * 2, "serving")
    assert ran_on[0].startswith("side")


def test_all_graphs_share_one_pool_and_one_stream(cuda: FakeCuda) -> None:
    """Else each bucket's graph would keep the memory of its largest step for itself."""
    recorder = CudaRecorder(DEVICE)
    ran_on: list[str] = []
    for _ in range(3):
        recorded(recorder, lambda: ran_on.append(cuda.current))
    assert cuda.captured == [cuda.captured[0]] * 3
    pool, stream = cuda.captured[0]
    assert pool.startswith("pool")
    assert ran_on == [stream] * 6, "before a capture and in it"


@pytest.mark.parametrize("end_fails", [False, True])
def test_after_a_failed_capture_steps_run_on_the_serving_stream_again(cuda: FakeCuda, end_fails: bool) -> None:
    """Else whatever they allocate would come out of the memory that the graphs write to."""
    cuda.end_fails = end_fails

    def body() -> None:
        if "capture" in cuda.said:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match=r"capture|capturing"):
        recorded(CudaRecorder(DEVICE), body)
    assert cuda.current == "serving"


@pytest.mark.parametrize("end_fails", [False, True], ids=["in its body", "at its end"])
def test_a_capture_that_fails_costs_no_other_one(cuda: FakeCuda, end_fails: bool) -> None:
    """The next ones are recorded, in one pool again, and the allocator knows of no capture that still goes on."""
    recorder, fails = CudaRecorder(DEVICE), [True]

    def body() -> None:
        if fails and "capture" in cuda.said and not end_fails:
            raise RuntimeError("CUDA out of memory")

    cuda.end_fails = end_fails
    with pytest.raises(RuntimeError):
        recorded(recorder, body)
    cuda.end_fails = False
    fails.clear()
    for _ in range(2):
        recorded(recorder, body)()
    failed, first, second = (pool for pool, _ in cuda.captured)
    assert first == second
    assert (failed == first) is not end_fails, "what is whole is shared on"
    assert cuda.underway == set()


def test_a_device_beyond_use_ends_the_engine_in_one_line(cuda: FakeCuda) -> None:
    recorder = CudaRecorder(DEVICE)
    recorder.require_usable()
    cuda.is_poisoned = True
    with pytest.raises(EngineFailed, match=r"unusable: CUDA error: an illegal memory access was encountered$"):
        recorder.require_usable()
