"""A GPU's core built on a CPU: what is asked of the device, in which order, and what becomes of the answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from service.engine.base import EngineConfig, GpuMemory, Token
from service.engine.core import NativeCore
from service.engine.cuda.choose_paths import Choice, assemble
from service.engine.cuda.flash import FLASH_PAGE
from service.engine.kernels.candidate import ServedShapes
from service.engine.kernels.ops import Ops
from service.engine.kernels.selfcheck import Proof
from service.engine.startup import build as subject
from service.engine.startup.build_runner import build_runner
from service.engine.startup.warm_up import time_decodes
from service.engine.steps.pace import DecodeTimes, PrefillPace
from service.engine.weights import load_weights
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import drain, native, tokens_of
from tests.support.engines import a_request
from tests.support.plans import CPU
from tests.support.recorder import ReplayingRecorder
from tests.support.varlen import plain_varlen

CUDA = torch.device("cuda")
MEMORY = GpuMemory(index=0, name="H100", total=8, used=7, allocated=6, reserved=5)
TIMES = DecodeTimes(of_one=0.001, of_most=0.002, most=3)


@dataclass
class Gpu:
    """Stands in for what asks the device: `said` is what, in order; what is then allocated lies on the CPU."""

    said: list[str] = field(default_factory=list)
    recorder: ReplayingRecorder = field(default_factory=ReplayingRecorder)

    def require_room(self, *_: Any, **__: Any) -> None:
        self.said.append("room")

    def choose_paths(self, shapes: ServedShapes, max_running: int) -> Choice:
        """A card where every kernel failed."""
        self.said.append("paths")
        assert shapes.device == CUDA
        return assemble(Proof(Ops(), ["all: off"], 0.0), replace(shapes, device=CPU), max_running, [plain_varlen])

    def record_on(self, device: torch.device) -> ReplayingRecorder:
        self.said.append("recorder")
        assert device == CUDA
        return self.recorder

    @contextmanager
    def reading_ahead(self, files: list[Path], most: int) -> Iterator[None]:
        assert [path.name for path in files] == ["model.safetensors"]
        assert 0 < most < psutil.virtual_memory().total
        self.said.append("read ahead")
        yield
        self.said.append("and no further")

    def time_decodes(self, runner: Any) -> DecodeTimes:
        self.said.append("times")
        before = self.recorder.replays
        time_decodes(runner)
        assert self.recorder.replays > before, "decodes are timed as they will be served: recorded"
        return TIMES

    def gauge(self, device: torch.device) -> Callable[[], list[GpuMemory]]:
        assert device == CUDA
        return lambda: [MEMORY]

    def on_cpu(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which is asked to work on the GPU."""

        def call(*arguments: Any) -> Any:
            self.said.append(name)
            assert CUDA in arguments
            return function(*(CPU if argument == CUDA else argument for argument in arguments))

        return call


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    stands_in = {
        "choose_device": lambda _: CUDA,
        "require_room": gpu.require_room,
        "choose_paths": gpu.choose_paths,
        "load_weights": gpu.on_cpu("weights", load_weights),
        "CudaRecorder": gpu.record_on,
        "build_runner": gpu.on_cpu("runner", build_runner),
        "reading_ahead": gpu.reading_ahead,
        "time_decodes": gpu.time_decodes,
        "GpuGauge": gpu.gauge,
    }
    for name, function in stands_in.items():
        monkeypatch.setattr(subject, name, function)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H100")
    monkeypatch.setattr("service.engine.startup.build_runner.measure_step_bytes", lambda *_: 0)
    return gpu


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), Shape(heads=16, kv_heads=2, max_positions=1024))


def build(model_dir: Path) -> NativeCore:
    settings: dict[str, Any] = {"max_running": 3, "kv_cache_tokens": 4096, "step_tokens": 100, "threads": 1}
    config = EngineConfig(kind="native", model_dir=str(model_dir), device="cpu", dtype="float32", **settings)
    return native(subject.build_core(config, lambda message: None))


def test_the_device_is_asked_for_room_first_and_timed_last(model_dir: Path, gpu: Gpu) -> None:
    core = build(model_dir)
    assert gpu.said == ["room", "read ahead", "paths", "and no further", "weights", "recorder", "runner", "times"]
    assert core.info.device == "H100"
    assert core.stats().gpus == [MEMORY]


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    model_dir: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConfigurationError("the model does not fit the GPU")

    monkeypatch.setattr(subject, "require_room", refuse)
    with pytest.raises(ConfigurationError, match="does not fit the GPU"):
        build(model_dir)
    assert "weights" not in gpu.said


def test_a_step_stays_in_flight_while_the_next_is_launched(model_dir: Path, gpu: Gpu) -> None:
    core = build(model_dir)
    assert core.add(a_request([1, 2, 3], new=4)) == []
    given = [[event for event in core.step() if isinstance(event, Token)] for _ in range(2)]
    assert [len(tokens) for tokens in given] == [0, 1]


def test_prompts_keep_the_pace_of_the_decodes_that_were_timed(
    model_dir: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def make(*arguments: Any) -> PrefillPace:
        asked.append(arguments)
        return PrefillPace(*arguments)

    monkeypatch.setattr(subject, "PrefillPace", make)
    assert build(model_dir)._scheduler._pace is not None
    assert asked == [(100, TIMES)]


def test_without_any_kernel_it_records_and_gives_the_plain_paths_tokens(
    model_dir: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [a_request([7 + i] * (30 * i + 1), new=12) for i in range(3)]
    core = build(model_dir)
    served = tokens_of(drain(core, requests))
    assert core.info.degraded == ["all: off"]
    assert core._runner.block_size == FLASH_PAGE
    assert core._runner.segments.shapes
    assert gpu.recorder.replays > 0
    monkeypatch.undo()
    assert served == tokens_of(drain(build(model_dir), requests))
