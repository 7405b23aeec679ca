"""The staged way into a device's memory, on the CPU and on a stand-in for a stream: every byte arrives, and in time."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from service.engine.checkpoint import staging
from service.engine.checkpoint.staging import Lane, Lanes
from service.engine.checkpoint.tensor_file import Extent, read_extents
from service.engine.checkpoint.tensors import READERS, Checkpoint
from service.engine.config import read_config
from service.engine.quantization import Int8Matrix
from service.engine.weights import allocate, places_of
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, write_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [Shape(shards=3), Shape(dtype=torch.bfloat16), Shape(tied=True, qkv_bias=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_staged_weights_equal_mapped_ones(tmp_path: Path, shape: Shape, dtype: torch.dtype) -> None:
    write_checkpoint(tmp_path, shape)
    config = read_config(tmp_path)
    checkpoint = Checkpoint(tmp_path, lambda name: False)
    mapped, staged = (places_of(allocate(config, CPU, dtype), config) for _ in range(2))
    assert checkpoint.read_into(staged, staged=True) == checkpoint.read_into(mapped)
    for name, tensor in mapped.items():
        assert torch.equal(staged[name], tensor), name


@pytest.mark.parametrize("buffer_bytes", [8, 24, 100, 4096])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_tensor_larger_than_a_buffer_arrives_in_pieces(tmp_path: Path, buffer_bytes: int, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 7).to(dtype), "b": torch.randn(5, 11).to(dtype)}
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    extents, lane = read_extents(path), Lane(CPU, buffer_bytes)
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            place = torch.zeros_like(tensor)
            assert lane.read(file.fileno(), path, extents[name], place) == tensor.nbytes
            assert torch.equal(place, tensor)
    lane.finish()


def test_a_place_inside_a_fused_matrix_is_filled_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"part": torch.ones(2, 4)}, path)
    fused = torch.zeros(6, 4)
    with path.open("rb") as file:
        Lane(CPU, 16).read(file.fileno(), path, read_extents(path)["part"], fused[2:4])
    assert fused.sum(dim=1).tolist() == [0, 0, 4, 4, 0, 0]


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"1234")
    with path.open("rb") as file, pytest.raises(OSError, match="ends at byte 4"):
        Lane(CPU).read(file.fileno(), path, Extent(torch.float32, 0, 8), torch.zeros(2))


def test_a_file_cut_off_after_its_check_is_a_configuration_error(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    config = read_config(tmp_path)
    checkpoint = Checkpoint(tmp_path, lambda name: False)
    path = tmp_path / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1000)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: damaged or unreadable"):
        checkpoint.read_into(places_of(allocate(config, CPU, torch.float32), config), staged=True)


def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"mask": torch.ones(2, dtype=torch.int8)}, path)
    with pytest.raises(ConfigurationError, match="mask has the type I8"):
        read_extents(path)


def test_the_readers_share_the_largest_tensors_first_whatever_files_they_are_in(tmp_path: Path) -> None:
    """Nine files for eight readers, or one file of unequal tensors, must not end with a single reader at work."""
    write_checkpoint(tmp_path, Shape(shards=3))
    checkpoint = Checkpoint(tmp_path, lambda name: False)
    places = places_of(allocate(read_config(tmp_path), CPU, torch.float32), read_config(tmp_path))
    sizes = [places[name].numel() for _, name in checkpoint._by_size(places)]
    assert sizes == sorted((place.numel() for place in places.values()), reverse=True)
    loads = [0] * READERS
    for size in sizes:  # each reader takes the next tensor as soon as it is done
        loads[loads.index(min(loads))] += size
    assert max(loads) - min(loads) <= max(sizes)


def test_a_reader_keeps_its_pinned_buffers_for_all_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Lane] = []

    class Counted(Lane):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device, 64)
            self.finished = 0
            made.append(self)

        def finish(self) -> None:
            self.finished += 1

    monkeypatch.setattr(staging, "Lane", Counted)
    write_checkpoint(tmp_path, Shape(layers=6, shards=3))
    config = read_config(tmp_path)
    checkpoint = Checkpoint(tmp_path, lambda name: False)
    checkpoint.read_into(places_of(allocate(config, CPU, torch.float32), config), staged=True)
    assert 1 <= len(made) <= READERS
    assert [lane.finished for lane in made] == [1] * len(made)  # type: ignore[attr-defined]


def test_a_thread_gets_the_same_lane_again() -> None:
    lanes = Lanes()
    assert lanes.of(CPU) is lanes.of(CPU)


class FakeGpu:
    """A stream whose copies are carried out late: when one of its events, or the stream, is waited for."""

    def __init__(self) -> None:
        self.copies: list[Callable[[], object]] = []
        self.current: FakeGpu | None = None
        self.waits: list[int] = []  # how many copies were made to arrive by each wait for an event
        self.made_for: list[torch.device] = []

    def synchronize(self) -> None:
        self.arrive(len(self.copies))

    def record_event(self) -> SimpleNamespace:
        recorded = self.copies[-1:]

        def synchronize() -> None:
            due = self.copies.index(recorded[0]) + 1 if recorded and recorded[0] in self.copies else 0
            self.waits.append(due)
            self.arrive(due)

        return SimpleNamespace(synchronize=synchronize)

    def arrive(self, count: int) -> None:
        arriving, self.copies = self.copies[:count], self.copies[count:]
        for copy in arriving:
            copy()

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.current = self
        try:
            yield
        finally:
            self.current = None


class DevicePlace:
    """A tensor [N] in the fake GPU's memory: a copy into it is ordered now and carried out when it is waited for."""

    def __init__(self, gpu: FakeGpu, memory: torch.Tensor) -> None:
        self._gpu, self.memory = gpu, memory
        self.device, self.shape = CPU, memory.shape

    def view(self, *shape: int) -> "DevicePlace":
        return DevicePlace(self._gpu, self.memory.view(*shape))

    def split(self, rows: int) -> list["DevicePlace"]:
        return [DevicePlace(self._gpu, part) for part in self.memory.split(rows)]

    def copy_(self, staged: torch.Tensor, non_blocking: bool) -> None:
        assert non_blocking
        assert self._gpu.current is self._gpu, "copied on the stream that is waited for"
        self._gpu.copies.append(lambda: self.memory.copy_(staged))


def test_a_matrix_is_rounded_on_the_stream_that_its_numbers_come_on(
    tmp_path: Path, fake_gpu: "FakeGpu", monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another one it would be rounded while its buffer is filled again."""
    on: list[FakeGpu | None] = []
    rounding = Int8Matrix._round

    def noting(self: Int8Matrix, numbers: torch.Tensor) -> None:
        on.append(fake_gpu.current)
        rounding(self, numbers)

    monkeypatch.setattr(Int8Matrix, "_round", noting)
    numbers, path = torch.randn(5, 4), tmp_path / "numbers"
    path.write_bytes(numbers.numpy().tobytes())
    place = Int8Matrix(torch.zeros(5, 4, dtype=torch.int8), torch.zeros(5))
    with path.open("rb") as file:
        extent = Extent(torch.float32, 0, numbers.nbytes)
        Lane(torch.device("cuda"), 2 * 16).read(file.fileno(), path, extent, place)
    assert on == [fake_gpu] * 3


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu, empty = FakeGpu(), torch.empty

    def stream(device: torch.device) -> FakeGpu:
        gpu.made_for.append(device)
        return gpu

    def pinned(*shape: int, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory, "a copy from pageable memory is not carried out meanwhile"
        return empty(*shape, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda entered: entered.entered())
    monkeypatch.setattr(torch, "empty", pinned)
    return gpu


def read_late(tmp_path: Path, gpu: FakeGpu, numbers: torch.Tensor) -> tuple[Lane, torch.Tensor]:
    """A lane that has read `numbers`, two to a buffer, and the memory where they are to arrive."""
    path = tmp_path / "numbers"
    path.write_bytes(numbers.numpy().tobytes())
    lane, memory = Lane(torch.device("cuda", 1), 2 * numbers.itemsize), torch.zeros_like(numbers)
    with path.open("rb") as file:
        lane.read(file.fileno(), path, Extent(numbers.dtype, 0, numbers.nbytes), DevicePlace(gpu, memory))  # type: ignore[arg-type]
    return lane, memory


def test_a_buffer_is_filled_again_only_when_its_copy_has_left_it(tmp_path: Path, fake_gpu: FakeGpu) -> None:
    numbers = torch.arange(1, 12, dtype=torch.int64)
    lane, memory = read_late(tmp_path, fake_gpu, numbers)
    lane.finish()
    assert memory.tolist() == numbers.tolist()
    assert fake_gpu.made_for == [torch.device("cuda", 1)]


def test_one_buffer_is_filled_while_the_other_ones_copy_is_under_way(tmp_path: Path, fake_gpu: FakeGpu) -> None:
    """Six pieces: the first two wait for nothing, each later one for the copy before the last alone."""
    read_late(tmp_path, fake_gpu, torch.arange(1, 12, dtype=torch.int64))
    assert fake_gpu.waits == [1, 1, 1, 1]
    assert len(fake_gpu.copies) == 2


def test_a_finished_lane_has_nothing_under_way(tmp_path: Path, fake_gpu: FakeGpu) -> None:
    lane, memory = read_late(tmp_path, fake_gpu, torch.arange(1, 4, dtype=torch.int64))
    assert memory.tolist() == [0, 0, 0], "the fake carries nothing out by itself"
    lane.finish()
    assert memory.tolist() == [1, 2, 3]
