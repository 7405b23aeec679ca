"""Steps with prompts by recordings: the same tokens as launch by launch, whatever a step holds and is padded to."""

import itertools
import random
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine.base import SamplingParams
from service.engine.cuda import segments as subject
from service.engine.cuda.graphs import Recorder
from service.engine.cuda.paths import Paths
from service.engine.cuda.segment_bodies import SegmentBodies, StepBuffers, StepShape
from service.engine.cuda.segments import Segments, shapes_for
from service.engine.kernels.ops import Ops
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import BLOCK_SIZE, CPU, GREEDY, load_native, runner_of, sequence_of
from tests.support.recorder import ReplayingRecorder
from tests.support.tape import TapeRecorder

LAYERS = 2
RUNNING = 4
SHAPES = [StepShape(8, 0), StepShape(16, 0), StepShape(8, 2), StepShape(24, 2), StepShape(48, 4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), Shape(heads=4, kv_heads=2, layers=LAYERS)))


def planned(model: Model) -> TorchRunner:
    """A runner on the paths of a GPU, over torch's operations; its cache is poisoned with NaN but for block 0."""
    return runner_of(model, paths=Paths(plans_decode=True, buckets=(1, 2, RUNNING)), max_running=RUNNING)


def recorded(model: Model, recorder: Recorder, shapes: list[StepShape] = SHAPES) -> TorchRunner:
    runner = planned(model)
    with torch.inference_mode():
        runner.segments = Segments(model, runner._cache, runner.slots)
        runner.segments.record(recorder, shapes, 60.0)
    return runner


def sequences(sampling: SamplingParams) -> list[Sequence]:
    made, first = [], 1
    for slot, length in enumerate((3, 30, 9, 17)):
        blocks = list(range(first, first + -(-(length + 20) // BLOCK_SIZE)))
        prompt = [(slot * 31 + i * 7) % 320 for i in range(length)]
        made.append(sequence_of(prompt, slot=slot, blocks=blocks[::-1], new=20, sampling=sampling))
        first += len(blocks)
    return made


def serve(runner: TorchRunner, budget: int, sampling: SamplingParams = GREEDY) -> list[list[int]]:
    """Answers of sequences that join one after the other: each step computes `budget` prompt tokens at most, and a
    token of every sequence whose prompt is done, for 12 tokens each."""
    joining, running, served = sequences(sampling), [], []
    done = dict.fromkeys((s.slot for s in joining), 0)
    while joining or any(len(s.output) < 12 for s in running):
        chunks, left = [], budget
        while joining and left:
            sequence = joining[0]
            if not done[sequence.slot]:
                runner.admit(sequence)
            end = min(done[sequence.slot] + left, sequence.prompt_length)
            chunks.append(Chunk(sequence, done[sequence.slot], end))
            left -= end - done[sequence.slot]
            done[sequence.slot] = end
            if end == sequence.prompt_length:
                served.append(joining.pop(0))
        decodes = [Decode(s, s.prompt_length + len(s.output) - 1) for s in running if len(s.output) < 12]
        plan = StepPlan(chunks, decodes)
        for sequence, token in zip(plan.sampled, runner.launch(plan).tokens(), strict=True):
            sequence.output.append(token)
        running = [*served]
    return [s.output for s in sorted(served, key=lambda s: s.slot)]


@pytest.mark.parametrize("make", [ReplayingRecorder, TapeRecorder])
@pytest.mark.parametrize("budget", [1, 4, 7, 16, 30])
def test_steps_by_recordings_give_the_tokens_of_steps_launch_by_launch(model: Model, budget: int, make: type) -> None:
    recorder = make()
    assert serve(recorded(model, recorder), budget) == serve(planned(model), budget) == serve(runner_of(model), budget)
    count = recorder.replays
    assert count > 0
    assert count % (LAYERS + 1) == 0


def test_sampled_tokens_are_the_same_too(model: Model) -> None:
    sampling = SamplingParams(temperature=1.3, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=11)
    assert serve(recorded(model, TapeRecorder()), 6, sampling) == serve(planned(model), 6, sampling)


def test_a_step_that_fits_no_shape_is_launched_and_so_are_decodes_alone(model: Model) -> None:
    recorder = TapeRecorder()
    runner = recorded(model, recorder, [StepShape(8, 2)])
    assert serve(runner, 30) == serve(planned(model), 30)
    assert recorder.replays == 0
    assert serve(recorded(model, recorder, [StepShape(8, 2)]), 5) == serve(planned(model), 5)
    assert recorder.replays > 0


def test_what_a_former_step_left_in_the_buffers_reaches_no_later_one(model: Model) -> None:
    """All of them hold NaN and numbers of slots and places that a step of other rows had no use for."""
    runner = recorded(model, TapeRecorder())
    assert runner.segments is not None
    expected = serve(planned(model), 5)
    buffers = runner.segments._buffers
    with torch.inference_mode():
        for tensor in (buffers.attended, buffers.qkv, buffers.hidden):
            tensor.fill_(torch.nan)
        buffers.numbers.fill_(1)
        buffers.rows.fill_(5)
    assert serve(runner, 5) == expected


def test_a_mixed_step_writes_no_block_but_its_sequences_and_the_scratch_one(model: Model) -> None:
    runner = recorded(model, TapeRecorder())
    long, short = sequences(GREEDY)[1], sequences(GREEDY)[0]
    runner.admit(short)
    runner.launch(StepPlan([Chunk(short, 0, 3)], [])).tokens()
    before = [tensor.clone() for tensor in (*runner._cache.keys, *runner._cache.values)]
    runner.admit(long)
    runner.launch(StepPlan([Chunk(long, 0, 10)], [Decode(short, 3)])).tokens()
    allowed = {0, *long.blocks, *short.blocks}
    others = [block for block in range(runner.num_blocks) if block not in allowed]
    for old, new in zip(before, (*runner._cache.keys, *runner._cache.values), strict=True):
        assert torch.equal(old[others].nan_to_num(7.0), new[others].nan_to_num(7.0))
        assert new[0].isfinite().all()


def test_slots_of_a_former_step_are_not_decoded_again(model: Model) -> None:
    """Their blocks may be another's by now."""
    runner = recorded(model, TapeRecorder())
    short, long, _, former = sequences(GREEDY)
    runner.admit(former)
    runner.admit(short)
    runner.launch(StepPlan([Chunk(short, 0, 3)], [])).tokens()
    before = [tensor[former.blocks].clone() for tensor in (*runner._cache.keys, *runner._cache.values)]
    assert runner.segments is not None
    with torch.inference_mode():
        runner.segments._buffers.numbers.fill_(former.slot)
    runner.admit(long)
    runner.launch(StepPlan([Chunk(long, 0, 10)], [Decode(short, 3)])).tokens()
    for old, new in zip(before, (*runner._cache.keys, *runner._cache.values), strict=True):
        assert torch.equal(old.nan_to_num(7.0), new[former.blocks].nan_to_num(7.0))


def test_a_single_decode_without_prompts_is_no_affair_of_the_segments(model: Model) -> None:
    recorder = TapeRecorder()
    runner, sequence = recorded(model, recorder), sequences(GREEDY)[0]
    runner.admit(sequence)
    runner.launch(StepPlan([Chunk(sequence, 0, 3)], [])).tokens()
    replays = recorder.replays
    runner.launch(StepPlan([], [Decode(sequence, 3)])).tokens()
    assert recorder.replays == replays


def test_a_shape_is_rehearsed_once_and_each_residual_given_back_when_its_reader_is_captured(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Noting(ReplayingRecorder):
        def rehearse(self, body: Any) -> None:
            said.append("rehearse")
            super().rehearse(body)
            said.append("rehearsed")

        def capture(self, body: Any) -> Any:
            said.append("capture")
            return super().capture(body)

    release = SegmentBodies.release

    def noting(self: SegmentBodies, layer: int) -> None:
        said.append("release")
        release(self, layer)

    monkeypatch.setattr(SegmentBodies, "release", noting)
    recorded(model, Noting(), [StepShape(8, 2)])
    assert said == ["rehearse", *["release"] * LAYERS, "rehearsed", "capture", *["capture", "release"] * LAYERS]


def test_a_long_complaint_is_cut(model: Model) -> None:
    class Wordy(ReplayingRecorder):
        def capture(self, body: Any) -> Any:
            raise RuntimeError("x" * 500)

    runner = recorded(model, Wordy(), [StepShape(8, 2)])
    assert runner.segments is not None
    [reason] = runner.segments.degraded
    assert 150 < len(reason) <= 200


@pytest.mark.parametrize(
    ("max_running", "step_tokens", "expected"),
    [
        (256, 2048, {(16, 0), (512, 0), (64, 32), (512, 32), (128, 96), (384, 256), (512, 256)}),
        (8, 16, {(16, 0), (16, 8), (64, 8)}),
        (1, 16, {(16, 0), (16, 1), (64, 1)}),
    ],
)
def test_shapes_reach_from_the_smallest_step_to_the_largest_that_occurs(
    max_running: int, step_tokens: int, expected: set[tuple[int, int]]
) -> None:
    found = shapes_for(max_running, step_tokens)
    assert {StepShape(*shape) for shape in expected} <= set(found)
    assert found == sorted(set(found))
    assert all(shape.decodes < shape.rows for shape in found)
    kinds = {shape.decodes for shape in found}
    assert kinds == {n for n in (0, 32, 96) if n < max_running} | {max_running}
    if step_tokens == 16:
        assert set(found) == {StepShape(*shape) for shape in expected}


def test_the_least_shape_with_room_serves(model: Model) -> None:
    runner = recorded(model, ReplayingRecorder())
    assert runner.segments is not None
    shape = runner.segments.shape
    assert (shape(0, 8), shape(0, 9), shape(1, 6), shape(2, 7)) == (
        StepShape(8, 0),
        StepShape(16, 0),
        StepShape(8, 2),
        StepShape(24, 2),
    )
    assert (shape(3, 1), shape(0, 44)) == (StepShape(48, 4), StepShape(48, 4))
    assert (shape(0, 45), shape(5, 1)) == (None, None)


def test_a_shape_that_cannot_be_recorded_is_named_and_the_others_serve(model: Model) -> None:
    recorder = ReplayingRecorder(failing=(5,))  # the largest has the first three
    runner = recorded(model, recorder)
    assert runner.segments is not None
    (reason,) = runner.segments.degraded
    assert reason == "segments: 24 rows: operation not permitted when stream is capturing (5)"
    assert recorder.checked == 1
    assert runner.segments.shapes == sorted(set(SHAPES) - {StepShape(24, 2)})


def test_recording_ends_in_time_and_says_what_is_missing(model: Model) -> None:
    runner = planned(model)
    segments = Segments(model, runner._cache, runner.slots)
    clock = itertools.count(0.0, 3.0).__next__
    with torch.inference_mode():
        segments.record(ReplayingRecorder(), SHAPES, 7.0, clock)
    assert segments.shapes == [StepShape(24, 2), StepShape(48, 4)], "the largest came first"
    assert segments.degraded == ["segments: no time was left for 3 of 5 shapes of steps"]


def test_a_residual_is_held_until_the_next_segment_was_recorded_and_no_longer(model: Model) -> None:
    runner = planned(model)
    buffers = StepBuffers.allocate(model.config, 8, runner.slots.spare, CPU, torch.float32)
    bodies = SegmentBodies(model, runner._cache, runner.slots, buffers, StepShape(8, 2))
    with torch.inference_mode():
        bodies.enter()
        for layer in range(LAYERS):
            bodies.advance(layer)
            bodies.advance(layer)
            assert sorted(bodies._residuals) == [layer, layer + 1]
            bodies.release(layer)
    assert sorted(bodies._residuals) == [LAYERS]


def test_no_kernel_of_ours_follows_a_copy(model: Model) -> None:
    """Its launch may overlap the one before, which has to be a kernel's for that."""
    noted: list[str] = []
    inside: list[str] = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not inside and func.name() in ("aten::copy_", "aten::embedding"):
                noted.append(func.name())
            return func(*args, **(kwargs or {}))

    def ours(name: str) -> Any:
        def run(*arguments: Any) -> Any:
            noted.append(name)
            inside.append(name)
            result = getattr(Ops(), name)(*arguments)
            inside.pop()
            return result

        return run

    names = ("add_rms_norm", "rotate_and_cache", "locate", "plan_decode", "decode_attention", "silu_mul")
    watched = Model.__new__(Model)
    watched.__dict__.update(model.__dict__)
    watched.ops = Ops(**{name: ours(name) for name in names})
    runner = planned(watched)
    buffers = StepBuffers.allocate(model.config, 8, runner.slots.spare, CPU, torch.float32)
    bodies = SegmentBodies(watched, runner._cache, runner.slots, buffers, StepShape(8, 2))
    with torch.inference_mode(), Copies():
        for segment in (bodies.enter, *(partial(bodies.advance, layer) for layer in range(LAYERS))):
            noted.append("begin")
            segment()
    assert set(noted) == {"begin", "aten::copy_", "aten::embedding", *names}
    assert {after for before, after in itertools.pairwise(noted) if before == "aten::copy_"} <= {
        "aten::copy_",
        "aten::embedding",
        "begin",
    }


def test_the_runner_asks_for_the_shapes_of_its_steps_in_the_time_that_decodes_left(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[StepShape], float]] = []

    def record(self: Segments, recorder: Recorder, shapes: list[StepShape], seconds: float) -> None:
        asked.append((shapes, seconds))

    monkeypatch.setattr(subject.Segments, "record", record)
    runner = planned(model)
    runner.record(ReplayingRecorder())
    assert runner.graphs is not None
    runner.graphs.seconds = 4.0
    runner.record_segments(ReplayingRecorder(), 100)
    assert asked == [(shapes_for(RUNNING, 100), 11.0)]


def test_random_steps_agree(model: Model) -> None:
    """Budgets that change from step to step, as the pace has them change."""
    dice = random.Random(5)
    runner, plain = recorded(model, TapeRecorder()), planned(model)
    for _ in range(4):
        budget = dice.randrange(1, 12)
        assert serve(runner, budget) == serve(plain, budget)
