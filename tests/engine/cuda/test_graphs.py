"""Recorded decodes without a GPU: which batch size is recorded, which serves, and that padding changes no token."""

import itertools
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from service.engine.base import SamplingParams
from service.engine.cuda.graphs import (
    BUCKETS,
    RECORDING_SECONDS,
    Compute,
    DecodeGraphs,
    Recorder,
    Sample,
    buckets_for,
    recording_order,
)
from service.engine.cuda.paths import Paths
from service.engine.kernels import torch_ops
from service.engine.kernels.ops import Ops
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.sampling import Method
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan
from service.engine.steps.slots import Slots
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import BLOCK_SIZE, GREEDY, bits_of, decode, load_native, prefill, runner_of, sequence_of
from tests.support.recorder import ReplayingRecorder
from tests.support.rotating import rotate_and_attend
from tests.support.tape import TapeRecorder

PROMPTS = [[7, 8, 9], list(range(20, 20 + BLOCK_SIZE)), [(i * 37) % 320 for i in range(41)]]
BUCKET_SIZES = (1, 2, 4, 8)
HIDDEN = Shape().hidden
ALL_METHODS = set(Method)
COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), Shape(heads=4, kv_heads=2)))


def planned(model: Model) -> TorchRunner:
    """A runner on the paths of a GPU, over torch's operations; its cache is poisoned with NaN but for block 0."""
    return runner_of(model, paths=Paths(plans_decode=True, buckets=BUCKET_SIZES))


def rotating(model: Model) -> TorchRunner:
    """The same, with an attention that rotates by itself."""
    watched = Model.__new__(Model)
    watched.__dict__.update(model.__dict__)
    watched.ops = replace(Ops(), rotating_attention=rotate_and_attend)
    return runner_of(watched, paths=Paths(watched.ops, plans_decode=True, buckets=BUCKET_SIZES))


def recorded(model: Model, recorder: Recorder, methods: set[Method] | None = None) -> TorchRunner:
    runner = planned(model)
    methods = ALL_METHODS if methods is None else methods
    runner.graphs = graphs_of(runner, methods)
    with torch.inference_mode():
        runner.graphs.record(recorder, *bodies(runner, methods), BUCKET_SIZES)
    return runner


def graphs_of(runner: TorchRunner, methods: set[Method]) -> DecodeGraphs:
    return DecodeGraphs(runner.slots, HIDDEN, torch.float32, methods)


def bodies(runner: TorchRunner, methods: set[Method]) -> tuple[Compute, Sample]:
    return runner.compute, partial(runner.sample, methods=methods)


def sequences(sampling: SamplingParams = GREEDY) -> list[Sequence]:
    made, first = [], 1
    for slot, prompt in enumerate(PROMPTS):
        last = first + -(-(len(prompt) + COUNT) // BLOCK_SIZE)
        made.append(
            sequence_of(prompt, slot=2 * slot + 1, blocks=list(range(first, last)), new=COUNT, sampling=sampling)
        )
        first = last
    return made


def answers(runner: TorchRunner, sampling: SamplingParams = GREEDY) -> list[list[int]]:
    served = sequences(sampling)
    first = [prefill(runner, sequence) for sequence in served]
    rest = decode(runner, served, COUNT - 1)
    return [[token, *tokens] for token, tokens in zip(first, rest, strict=True)]


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(seed=3),
        SamplingParams(temperature=1.5, top_k=0, top_p=0.9, repetition_penalty=1.3, seed=4),
    ],
    ids=["greedy", "candidates", "sorted"],
)
def test_recorded_and_planned_decodes_give_the_plain_paths_tokens(model: Model, sampling: SamplingParams) -> None:
    expected = answers(runner_of(model), sampling)
    assert answers(planned(model), sampling) == expected
    recorder = ReplayingRecorder()
    assert answers(recorded(model, recorder), sampling) == expected
    assert recorder.replays == 2 * (COUNT - 1), "two a step"
    assert answers(recorded(model, TapeRecorder()), sampling) == expected, (
        "and nothing of the recording's own step stays"
    )


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(seed=3)], ids=["greedy", "candidates"])
@pytest.mark.parametrize("records", [True, False])
def test_decodes_that_their_attention_rotates_give_the_plain_paths_tokens(
    model: Model, records: bool, sampling: SamplingParams
) -> None:
    runner, recorder = rotating(model), TapeRecorder()
    if records:
        runner.record(recorder)
    rotations: list[int] = []

    def noting(qkv: torch.Tensor, *rest: Any) -> None:
        rotations.append(qkv.shape[0])
        torch_ops.rotate_and_cache(qkv, *rest)

    runner._model.ops = replace(runner._model.ops, rotate_and_cache=noting)
    assert answers(runner, sampling) == answers(runner_of(model), sampling)
    assert set(rotations) == {len(prompt) for prompt in PROMPTS}, "prompts are rotated apart, decodes are not"
    assert recorder.replays == (2 * (COUNT - 1) if records else 0)


def test_a_step_with_prompts_rotates_its_decodes_apart(model: Model) -> None:
    expected = answers(runner_of(model))
    runner = rotating(model)
    first, second, _ = sequences()
    prefill(runner, first)
    runner.admit(second)
    mixed = StepPlan([Chunk(second, 0, second.prompt_length)], [Decode(first, first.prompt_length)])
    assert runner.launch(mixed).tokens() == [expected[1][0], expected[0][1]]
    both = [Decode(first, first.prompt_length + 1), Decode(second, second.prompt_length)]
    assert runner.launch(StepPlan([], both)).tokens() == [expected[0][2], expected[1][1]]


@pytest.mark.parametrize("sorts", [True, False], ids=["torch's sampler", "one of kernels"])
def test_a_recording_holds_what_its_sampler_computes_for_every_row(model: Model, sorts: bool) -> None:
    """torch's would sort the vocabulary in every decode, for the sake of a few."""
    watched = Model.__new__(Model)
    watched.__dict__.update(model.__dict__)
    watched.ops = Ops() if sorts else replace(Ops(), sample=lambda *arguments: torch_ops.sample(*arguments))
    recorder, runner = ReplayingRecorder(), planned(watched)
    runner.record(recorder)
    sampling = SamplingParams(top_k=0, top_p=0.9, seed=4)
    assert answers(runner, sampling) == answers(runner_of(model), sampling)
    assert recorder.replays == (0 if sorts else 2 * (COUNT - 1))


def test_a_step_with_prompts_goes_past_the_graphs_and_shares_their_state(model: Model) -> None:
    expected = answers(runner_of(model))
    recorder = ReplayingRecorder()
    runner = recorded(model, recorder)
    first, second, third = sequences()
    tokens = [prefill(runner, first)]
    runner.admit(second)
    runner.admit(third)
    chunks = [Chunk(second, 0, second.prompt_length), Chunk(third, 0, 10)]
    mixed = runner.launch(StepPlan(chunks, [Decode(first, first.prompt_length)])).tokens()
    assert mixed == [expected[1][0], expected[0][1]]
    assert recorder.replays == 0
    both = [Decode(first, first.prompt_length + 1), Decode(second, second.prompt_length)]
    assert runner.launch(StepPlan([], both)).tokens() == [expected[0][2], expected[1][1]]
    assert recorder.replays == 2
    assert tokens == expected[0][:1]


def test_tokens_handed_over_are_not_overwritten_by_the_next_step(model: Model) -> None:
    """All recordings leave theirs in one place, and the next step is launched before the last one's are read."""
    expected = answers(runner_of(model))
    runner = recorded(model, ReplayingRecorder())
    served = sequences()
    for sequence in served:
        prefill(runner, sequence)
    pending = []
    for step in range(3):
        pending.append(runner.launch(StepPlan([], [Decode(s, s.prompt_length + step) for s in served])))
    got = [step.tokens() for step in pending]
    assert got == [[tokens[1 + step] for tokens in expected] for step in range(3)]


def test_padding_never_walks_out_of_the_block_table(model: Model) -> None:
    runner = recorded(model, ReplayingRecorder())
    answers(runner)
    assert runner.slots.positions[runner.slots.spare] == 0
    assert not runner.slots.tables[runner.slots.spare].any()


def test_a_method_no_recording_has_is_served_launch_by_launch(model: Model) -> None:
    sampling = SamplingParams(temperature=1.5, top_k=0, top_p=0.9, seed=4)
    recorder = ReplayingRecorder()
    runner = recorded(model, recorder, {Method.GREEDY, Method.CANDIDATES})
    assert answers(runner, sampling) == answers(runner_of(model), sampling)
    assert recorder.replays == 0
    answers(runner, SamplingParams(seed=1))
    assert recorder.replays == 2 * (COUNT - 1)


@pytest.mark.parametrize(
    ("failing", "sizes"),
    [((7,), [4]), ((8,), [4]), ((1, 2), [1, 8]), ((2,), [8]), (range(1, 5), [1, 2, 4, 8])],
    ids=["computing", "sampling", "two", "the largest", "all"],
)
def test_a_failed_recording_is_named_and_a_larger_one_serves(
    model: Model, failing: Collection[int], sizes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Two are made for each size, the largest first; with one that fails, there is no other for it."""
    recorder = ReplayingRecorder(failing)
    runner = recorded(model, recorder)
    assert runner.graphs is not None
    assert runner.graphs.buckets == tuple(sorted(set(BUCKET_SIZES) - set(sizes)))
    assert [reason.split(": ")[1] for reason in sorted(runner.graphs.degraded)] == [
        f"batch size {size}" for size in sizes
    ]
    assert all("\n" not in reason for reason in runner.graphs.degraded)
    assert f"without a recording of {sizes[-1]}" in caplog.text
    assert answers(runner) == answers(runner_of(model))
    assert recorder.checked == len(sizes), "a failed recording may have poisoned the device"


def test_both_parts_of_a_decode_are_rehearsed_before_they_are_captured(model: Model) -> None:
    """What compiles, or takes a workspace, must not do so in a capture."""
    said: list[str] = []

    class Noting(ReplayingRecorder):
        def rehearse(self, body: Callable[[], None]) -> None:
            said.append(f"rehearse {body.__name__}")
            super().rehearse(body)

        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            said.append(f"capture {body.__name__}")
            return super().capture(body)

    recorded(model, Noting())
    each = ["rehearse first", "rehearse second", "capture first", "capture second"]
    assert said == each * len(BUCKET_SIZES)


def test_what_is_sampled_may_be_settled_after_a_decode_was_begun(model: Model) -> None:
    """Between its two recordings, or without any: the same tokens of what is allowed."""
    allowed = [3, 9, model.config.vocab_size - 1]
    given = []
    for runner in (runner_of(model), recorded(model, ReplayingRecorder()), recorded(model, TapeRecorder())):
        served = sequences(SamplingParams(seed=5))
        tokens = [[prefill(runner, sequence)] for sequence in served]
        for step in range(4):
            pending = runner.begin(StepPlan([], [Decode(s, s.prompt_length + step) for s in served]))
            runner.restrict([served[1].slot], bits_of([allowed], model.config.vocab_size))
            pending.sample()
            for row, token in zip(tokens, pending.tokens(), strict=True):
                row.append(token)
        assert set(tokens[1][1:]) <= set(allowed)
        given.append(tokens)
    assert given[0] == given[1] == given[2]
    free = answers(runner_of(model), SamplingParams(seed=5))
    assert [given[0][at] for at in (0, 2)] == [free[at][:5] for at in (0, 2)], "a neighbour's are what they were"


def test_a_recording_that_leaves_the_device_unusable_ends_the_start(model: Model) -> None:
    with pytest.raises(RuntimeError, match="beyond use"):
        recorded(model, ReplayingRecorder((4,), poisoned=True))


def test_recording_stops_when_its_time_is_over_and_says_so(model: Model) -> None:
    runner = planned(model)
    graphs = graphs_of(runner, ALL_METHODS)
    clock = itertools.count(step=RECORDING_SECONDS / 2.5)
    with torch.inference_mode():
        graphs.record(ReplayingRecorder(), *bodies(runner, ALL_METHODS), BUCKET_SIZES, lambda: next(clock))
    assert graphs.buckets == (1, 8)
    assert graphs.seconds > RECORDING_SECONDS
    assert graphs.degraded == ["cuda_graphs: 15 s were over before the batch sizes [2, 4]"]
    assert graphs.can_run([0] * 5, {Method.GREEDY})


@pytest.mark.parametrize(
    ("max_running", "expected"), [(1, (1,)), (5, (1, 2, 4, 5)), (256, BUCKETS), (300, (*BUCKETS, 300))]
)
def test_the_largest_bucket_holds_every_running_request(max_running: int, expected: tuple[int, ...]) -> None:
    assert buckets_for(max_running) == expected


def test_the_largest_bucket_is_recorded_first_and_then_the_smallest() -> None:
    assert recording_order(BUCKETS)[:4] == [256, 1, 2, 4]
    assert sorted(recording_order(BUCKETS)) == list(BUCKETS)


def test_a_batch_of_sixteen_or_more_is_padded_by_less_than_a_half() -> None:
    paths = Paths(buckets=BUCKETS)
    assert max(paths.padded(count) / count for count in range(17, 257)) < 1.5
    assert Paths().padded(7) == 7


def test_a_batch_no_recording_is_large_enough_for_is_not_run() -> None:
    graphs = DecodeGraphs(Slots(4, 2, 32, torch.device("cpu")), HIDDEN, torch.float32, ALL_METHODS)
    assert not graphs.can_run([0], {Method.GREEDY})
