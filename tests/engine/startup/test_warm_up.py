"""A warm-up computes the largest steps there can be, on two blocks, and disturbs nothing that comes after."""

from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.base import EngineConfig
from service.engine.config import read_config
from service.engine.cuda.paths import Paths
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.sampling import Method
from service.engine.startup.capacity import plan_capacity
from service.engine.startup.warm_up import GRAPH_BYTES, largest_steps, measure_step_bytes, time_decodes
from service.engine.steps.plan import StepPlan
from service.errors import ConfigurationError
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import generate, load_native, runner_of, sequence_of
from tests.support.recorder import ReplayingRecorder

PLANNED = Paths(plans_decode=True, buckets=(1, 2, 4))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("model"), Shape(max_positions=200))


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Model:
    return load_native(model_dir)


class Watched(TorchRunner):
    """Keeps the plans it was given."""

    plans: list[StepPlan]

    def begin(self, plan: StepPlan) -> Any:
        self.plans.append(plan)
        return super().begin(plan)


def compute_all(runner: TorchRunner, step_tokens: int, max_context: int) -> None:
    assert len(list(largest_steps(runner, step_tokens, max_context))) == 2


@pytest.mark.parametrize("paths", [None, PLANNED])
def test_it_computes_a_full_batch_and_a_full_chunk_at_the_end_of_the_longest_prompt(
    model: Model, paths: Paths | None
) -> None:
    runner = runner_of(model, num_blocks=2, max_running=4, paths=paths)
    runner.__class__, runner.plans = Watched, []  # type: ignore[assignment, attr-defined]
    compute_all(runner, 64, 200)
    alone, mixed = runner.plans  # type: ignore[attr-defined]
    assert (len(alone.decodes), len(alone.chunks)) == (4, 0)
    assert [(c.start, c.end, c.completes) for c in mixed.chunks] == [(135, 199, True)]
    assert len(mixed.decodes) == 3


@pytest.mark.parametrize(("max_running", "step_tokens"), [(1, 16), (1, 512), (3, 512)])
def test_the_smallest_engine_and_the_largest_chunk_are_warmed_up_too(
    model: Model, max_running: int, step_tokens: int
) -> None:
    compute_all(runner_of(model, num_blocks=2, max_running=max_running), step_tokens, 200)


def test_a_request_after_it_gets_its_own_tokens(model: Model) -> None:
    def answer(runner: TorchRunner) -> list[int]:
        return generate(runner, sequence_of(list(range(30)), slot=1, blocks=[2, 3, 4, 5, 6], new=8), 8)

    warmed = runner_of(model)
    compute_all(warmed, 64, 200)
    assert answer(warmed) == answer(runner_of(model))


def test_torchs_sampler_is_recorded_without_its_sort(model: Model) -> None:
    """Else every step would sort the vocabulary for a method that hardly anybody asks for."""
    runner = runner_of(model, max_running=4, paths=PLANNED)
    runner.record(ReplayingRecorder())
    assert runner.graphs is not None
    assert runner.graphs.buckets == (1, 2, 4)
    assert runner.graphs.can_run([0], {Method.GREEDY, Method.CANDIDATES, Method.UNFILTERED})
    assert not runner.graphs.can_run([0], {Method.SORTED})


def test_what_steps_need_is_their_peak_and_the_decodes_own_once_more_for_the_recordings(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long prompt's chunk needs far more than a decode, and is never recorded."""
    said: list[str] = []
    peaks = iter([1200, 1500])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("emptied"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: said.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: said.append("looked") or next(peaks))

    def make() -> TorchRunner:
        said.append("made")
        runner = runner_of(model, num_blocks=2, max_running=2)
        runner.__class__ = Watched
        runner.plans = Said(said)  # type: ignore[attr-defined]
        return runner

    assert measure_step_bytes(torch.device("cuda"), make, 64, 200) == 200 + 500 + GRAPH_BYTES
    assert said == ["emptied", "reset", "made", "decodes", "looked", "chunk", "looked", "emptied"]


class Said(list[StepPlan]):
    """Tells of each plan instead of keeping it."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def append(self, plan: StepPlan) -> None:
        self._said.append("chunk" if plan.chunks else "decodes")


def test_timing_decodes_disturbs_nothing(model: Model) -> None:
    def answer(runner: TorchRunner) -> list[int]:
        return generate(runner, sequence_of(list(range(30)), slot=0, blocks=[1, 2, 3, 4, 5], new=8), 8)

    timed = runner_of(model, paths=PLANNED)
    timed.record(ReplayingRecorder())
    times = time_decodes(timed)
    assert times.of_one > 0
    assert times.of_most > 0
    assert times.most == timed.max_running
    assert answer(timed) == answer(runner_of(model))


@pytest.mark.parametrize(("step_bytes", "blocks"), [(0, 800), (400 * 4096, 400), (800 * 4096, None)])
def test_a_gpus_cache_gets_what_its_share_and_the_steps_leave(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, step_bytes: int, blocks: int | None
) -> None:
    """Two layers of 2 * 16 numbers of two bytes: 128 bytes a token, 4096 a block of 32."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (900 * 4096, 1000 * 4096))
    config = EngineConfig(kind="native", model_dir=str(model_dir), block_size=32, gpu_memory_fraction=0.9)
    arguments = (config, read_config(model_dir), torch.device("cuda"), torch.float16, step_bytes)
    if blocks is None:
        with pytest.raises(ConfigurationError, match="KV cache needs room"):
            plan_capacity(*arguments)
    else:
        # A share of 0.9 is not a whole number of bytes.
        assert plan_capacity(*arguments).num_blocks - 1 in (blocks - 1, blocks)
