"""The kernels where they serve: a model's tokens through them, in mixed steps and recorded decodes, are torch's."""

from pathlib import Path

import pytest
import torch

from service.engine.base import SamplingParams
from service.engine.cuda.paths import Paths
from service.engine.defaults import Quantization
from service.engine.kernels.ops import Ops
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Chunk, Decode, StepPlan
from tests.engine.kernels.conftest import Subject
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import GREEDY, load_native, runner_of, sequence_of
from tests.support.recorder import ReplayingRecorder

BLOCK = 16
SHAPES = [
    Shape(heads=32, kv_heads=2, head_dim=16, layers=1),
    Shape(heads=9, kv_heads=3, head_dim=16, hidden=72, layers=2, qkv_bias=True, bias=True, tied=True),
]
SAMPLED = SamplingParams(seed=3)


def with_ops(model: Model, ops: Ops) -> Model:
    copy = Model.__new__(Model)
    copy.__dict__.update(model.__dict__)
    copy.ops = ops
    return copy


def tokens_of(runner: TorchRunner, sampling: SamplingParams) -> list[int]:
    """A prompt; a longer one in two chunks beside its decodes; then both in decodes alone, one of them ending."""
    short = sequence_of([7, 8, 9], slot=1, blocks=[1, 2], sampling=sampling)
    long = sequence_of([(i * 37) % 320 for i in range(40)], slot=3, blocks=[5, 3, 4], sampling=sampling)
    runner.admit(short)
    given = runner.launch(StepPlan([Chunk(short, 0, 3)], [])).tokens()
    runner.admit(long)
    given += runner.launch(StepPlan([Chunk(long, 0, 21)], [Decode(short, 3)])).tokens()
    given += runner.launch(StepPlan([Chunk(long, 21, 40)], [Decode(short, 4)])).tokens()
    given += runner.launch(StepPlan([], [Decode(short, 5), Decode(long, 40)])).tokens()
    return given + runner.launch(StepPlan([], [Decode(long, 41)])).tokens()


@pytest.mark.parametrize(("quantization", "sampling"), [("none", GREEDY), ("none", SAMPLED), ("int8", SAMPLED)])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_models_tokens_through_the_kernels_are_torchs(
    kernel_subject: Subject, tmp_path: Path, shape: Shape, quantization: Quantization, sampling: SamplingParams
) -> None:
    if kernel_subject.device.type != "cpu":
        pytest.skip("tests/gpu has the engine on a GPU")
    model = load_native(write_checkpoint(tmp_path, shape), quantization=quantization)
    expected = tokens_of(runner_of(model, block_size=BLOCK), sampling)
    chunks = kernel_subject.ops.chunk_attention
    assert chunks is not None
    paths = Paths(kernel_subject.ops, chunks, plans_decode=True, buckets=(1, 2))
    runner = runner_of(with_ops(model, kernel_subject.ops), paths=paths, block_size=BLOCK, max_running=4)
    recorder = ReplayingRecorder()
    runner.record(recorder)
    assert tokens_of(runner, sampling) == expected
    assert len(expected) == 7
    assert recorder.replays == 2 + 2, "two decodes"
    assert torch.isfinite(runner._cache.keys[0][0]).all(), "padding rows wrote finite numbers to the scratch block"
