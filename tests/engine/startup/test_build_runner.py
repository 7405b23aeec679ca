"""The order of a GPU's start on a CPU, with a device layer that records by computing again."""

from typing import Any

import pytest
import torch

from service.engine.attention import PagedCache
from service.engine.base import EngineConfig
from service.engine.cuda.paths import Paths
from service.engine.cuda.segments import shapes_for
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.startup import build_runner as subject
from service.engine.startup.build_runner import build_runner
from service.engine.startup.capacity import Capacity
from service.engine.startup.phases import Phases
from service.engine.startup.warm_up import largest_steps
from service.engine.steps.plan import OutOfMemory
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import CPU, generate, load_native, sequence_of
from tests.support.recorder import ReplayingRecorder

PLANNED = Paths(plans_decode=True, buckets=(1, 2, 4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), Shape(max_positions=128)))


def start(
    model: Model, paths: Paths, recorder: ReplayingRecorder | None, device: torch.device = CPU, **settings: Any
) -> tuple[TorchRunner, Capacity, list[str], Phases]:
    said: list[str] = []
    phases = Phases(said.append)
    fixed: dict[str, Any] = {"block_size": 16, "max_running": 4, "kv_cache_tokens": 640, "step_tokens": 40}
    config = EngineConfig(kind="native", model_dir="", **(fixed | settings))
    runner, capacity = build_runner(model, paths, config, device, torch.float32, phases, recorder)
    return runner, capacity, said, phases


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Blocks and longest context of the runners whose steps were measured."""
    seen: list[tuple[int, int]] = []

    def measure(device: torch.device, make: Any, step_tokens: int, max_context: int) -> int:
        runner = make()
        list(largest_steps(runner, step_tokens, max_context))
        seen.append((runner.num_blocks, max_context))
        return 1 << 20

    monkeypatch.setattr(subject, "measure_step_bytes", measure)
    return seen


def test_a_gpu_computes_its_largest_steps_then_sizes_the_cache_then_records(
    model: Model, measured: list[tuple[int, int]]
) -> None:
    recorder = ReplayingRecorder()
    runner, capacity, said, phases = start(model, PLANNED, recorder)
    assert measured == [(2, 128)]
    assert list(phases.seconds) == ["warm_up", "kv_cache", "graphs", "segments"]
    assert [message.split()[0] for message in said] == ["computing", "allocating", "recording", "recording"]
    assert (capacity.num_blocks, capacity.max_running, capacity.max_context) == (41, 4, 128)
    assert runner.graphs is not None
    assert runner.graphs.buckets == (1, 2, 4)
    assert recorder.recorded == 2 * 3 + len(shapes_for(4, 40)) * (1 + model.config.num_layers)
    assert runner.segments is not None
    assert runner.segments.shapes == shapes_for(4, 40)


def test_a_started_gpu_runner_gives_the_tokens_of_a_cpus(model: Model, measured: list[tuple[int, int]]) -> None:
    def answer(runner: TorchRunner) -> list[int]:
        return generate(runner, sequence_of(list(range(40)), slot=1, blocks=[3, 2, 5, 7], new=10), 10, chunk=17)

    recorder = ReplayingRecorder()
    assert answer(start(model, PLANNED, recorder)[0]) == answer(start(model, Paths(), None)[0])
    assert recorder.replays == 2 * 9 + 3 * (1 + model.config.num_layers), "nine decodes, three chunks"


def test_without_planned_attention_nothing_is_recorded(model: Model, measured: list[tuple[int, int]]) -> None:
    recorder = ReplayingRecorder()
    runner, _, _, phases = start(model, Paths(), recorder)
    assert (recorder.recorded, runner.graphs, "graphs" in phases.seconds) == (0, None, False)


def test_a_cpu_measures_and_records_nothing(model: Model, measured: list[tuple[int, int]]) -> None:
    _, _, _, phases = start(model, Paths(), None)
    assert (measured, list(phases.seconds)) == ([], ["kv_cache"])


def test_a_step_that_does_not_fit_is_refused_with_the_settings_that_help(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any) -> int:
        raise OutOfMemory("tried to allocate 3 GiB")

    monkeypatch.setattr(subject, "measure_step_bytes", measure)
    with pytest.raises(ConfigurationError, match=r"3 GiB.*INTERNLM_MAX_RUNNING, INTERNLM_STEP_TOKENS"):
        start(model, PLANNED, ReplayingRecorder())


def test_a_gpus_cache_gets_what_is_free_after_the_steps_were_measured_less_what_they_need(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled and loaded for the first steps stays. 2 layers of 2 * 16 numbers of 4 bytes: 4096 a block."""
    free = [900 * 4096]

    def measure(*_: Any) -> int:
        free[:] = [500 * 4096]
        return 100 * 4096

    monkeypatch.setattr(subject, "measure_step_bytes", measure)
    monkeypatch.setattr(
        subject, "PagedCache", lambda c, blocks, size, _, dtype: PagedCache(c, blocks, size, CPU, dtype)
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 1000 * 4096))
    settings = {"kv_cache_tokens": 0, "gpu_memory_fraction": 0.75}
    runner, capacity, _, _ = start(model, PLANNED, ReplayingRecorder(), torch.device("cuda"), **settings)
    assert capacity.num_blocks == runner.num_blocks == 500 - 250 - 100 + 1
