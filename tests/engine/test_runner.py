"""The runner under hand-made plans: whatever the chunks, batch, blocks or leftovers, a sequence gets its own tokens."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from service.engine.attention import Attention
from service.engine.base import SamplingParams
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.sampling import FORBIDDEN, ONCE, SEEN
from service.engine.steps.plan import Chunk, Decode, OutOfMemory, Sequence, StepPlan
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.plans import (
    BLOCK_SIZE,
    GREEDY,
    bits_of,
    decode,
    generate,
    load_native,
    prefill,
    runner_of,
    sequence_of,
)

PROMPTS = [
    [5],
    [7, 8, 9, 10, 11, 12, 13],
    list(range(20, 20 + BLOCK_SIZE)),
    list(range(100, 100 + 2 * BLOCK_SIZE + 1)),
    [(i * 37) % 320 for i in range(60)],
]
COUNT = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    shape = Shape(heads=9, kv_heads=3, hidden=72, tied=True)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), shape))


@pytest.fixture(scope="module")
def alone(model: Model) -> list[list[int]]:
    """Each prompt's tokens, alone on a fresh runner in one chunk."""
    return [
        generate(runner_of(model), sequence_of(prompt, slot=0, blocks=blocks_for(1, prompt)), COUNT)
        for prompt in PROMPTS
    ]


def blocks_for(first: int, prompt: list[int]) -> list[int]:
    return list(range(first, first + -(-(len(prompt) + COUNT) // BLOCK_SIZE)))


def all_sequences(sampling: SamplingParams | None = None) -> list[Sequence]:
    """One sequence per prompt, each with a slot and blocks of its own, blocks in no particular order."""
    sequences, first = [], 1
    for slot, prompt in enumerate(PROMPTS):
        blocks = blocks_for(first, prompt)
        first += len(blocks)
        shuffled = blocks[1::2] + blocks[::2]
        extra = {} if sampling is None else {"sampling": sampling}
        sequences.append(sequence_of(prompt, slot=len(PROMPTS) - slot, blocks=shuffled, new=COUNT, **extra))
    return sequences


@pytest.mark.parametrize("chunk", [1, 3, BLOCK_SIZE, BLOCK_SIZE + 1, 16])
def test_tokens_do_not_depend_on_the_chunk_size(model: Model, alone: list[list[int]], chunk: int) -> None:
    for prompt, expected in zip(PROMPTS, alone, strict=True):
        sequence = sequence_of(prompt, slot=2, blocks=blocks_for(5, prompt))
        assert generate(runner_of(model), sequence, COUNT, chunk) == expected


def test_a_batch_of_unequal_lengths_gives_each_its_own_tokens(model: Model, alone: list[list[int]]) -> None:
    runner, sequences = runner_of(model), all_sequences()
    first = [prefill(runner, sequence) for sequence in sequences]
    rest = decode(runner, sequences, COUNT - 1)
    assert [[token, *tokens] for token, tokens in zip(first, rest, strict=True)] == alone


def test_the_order_of_a_batch_is_the_plans(model: Model, alone: list[list[int]]) -> None:
    runner, sequences = runner_of(model), all_sequences()
    first = [prefill(runner, sequence) for sequence in sequences]
    rest = decode(runner, sequences[::-1], COUNT - 1)[::-1]
    assert [[token, *tokens] for token, tokens in zip(first, rest, strict=True)] == alone


def test_prompts_prefilled_in_one_step_get_their_first_tokens_in_order(model: Model, alone: list[list[int]]) -> None:
    runner, sequences = runner_of(model), all_sequences()
    for sequence in sequences:
        runner.admit(sequence)
    chunks = [Chunk(sequence, 0, sequence.prompt_length) for sequence in sequences]
    assert runner.launch(StepPlan(chunks, [])).tokens() == [tokens[0] for tokens in alone]


def test_a_step_mixes_unfinished_chunks_finished_ones_and_decodes(model: Model, alone: list[list[int]]) -> None:
    runner, sequences = runner_of(model), all_sequences()
    running, finishing, unfinished = sequences[1], sequences[3], sequences[4]
    first = prefill(runner, running)
    runner.admit(finishing)
    runner.admit(unfinished)
    plan = StepPlan(
        [Chunk(finishing, 0, finishing.prompt_length), Chunk(unfinished, 0, 21)],
        [Decode(running, running.prompt_length)],
    )
    tokens = runner.launch(plan).tokens()
    assert [first, tokens[1]] == alone[1][:2]
    assert tokens[0] == alone[3][0]
    plan = StepPlan([Chunk(unfinished, 21, 60)], [Decode(finishing, finishing.prompt_length)])
    assert runner.launch(plan).tokens() == [alone[4][0], alone[3][1]]


def test_a_step_without_a_finished_chunk_yields_no_token(model: Model) -> None:
    runner, sequence = runner_of(model), all_sequences()[4]
    runner.admit(sequence)
    assert runner.launch(StepPlan([Chunk(sequence, 0, 10)], [])).tokens() == []


def test_a_cached_prefix_is_read_and_not_computed_again(model: Model, alone: list[list[int]]) -> None:
    runner = runner_of(model)
    owner = sequence_of(PROMPTS[4], slot=0, blocks=blocks_for(1, PROMPTS[4]))
    prefill(runner, owner)
    follower = sequence_of(PROMPTS[4], slot=1, blocks=owner.blocks[:7] + list(range(40, 44)))
    follower.cached = 7 * BLOCK_SIZE
    assert generate(runner, follower, COUNT, chunk=3) == alone[4]


def test_a_slot_and_its_blocks_can_be_used_again(model: Model, alone: list[list[int]]) -> None:
    runner = runner_of(model)
    for prompt, expected in [*zip(PROMPTS, alone, strict=True)] * 2:
        sampled = SamplingParams(temperature=3.0, top_k=0, top_p=1.0, repetition_penalty=2.0, seed=5)
        generate(runner, sequence_of(PROMPTS[4], slot=3, blocks=blocks_for(2, PROMPTS[4]), sampling=sampled), 5)
        assert generate(runner, sequence_of(prompt, slot=3, blocks=blocks_for(2, prompt)), COUNT) == expected


def test_what_a_former_owner_left_in_a_block_cannot_spoil_its_next(model: Model, alone: list[list[int]]) -> None:
    """`runner_of` fills the cache with NaN, which no masked score and no weight of zero would take away."""
    runner, sequences = runner_of(model), all_sequences()
    prefill(runner, sequences[4], chunk=7)
    assert prefill(runner, sequences[0]) == alone[0][0]
    decode(runner, [sequences[4]], 1)
    both = decode(runner, [sequences[0], sequences[4]], COUNT - 2)
    assert both[0] == alone[0][1 : COUNT - 1]
    assert both[1] == alone[4][2:COUNT]


def test_the_same_seed_gives_the_same_tokens_alone_batched_and_chunked(model: Model) -> None:
    sampling = SamplingParams(temperature=1.5, top_k=40, top_p=0.9, repetition_penalty=1.2, seed=77)
    singles = []
    for sequence in all_sequences(sampling):
        sequence.slot = 0
        singles.append(generate(runner_of(model), sequence, COUNT, chunk=4))
    runner, sequences = runner_of(model), all_sequences(sampling)
    first = [prefill(runner, sequence) for sequence in sequences]
    rest = decode(runner, sequences, COUNT - 1)
    assert [[token, *tokens] for token, tokens in zip(first, rest, strict=True)] == singles


def test_a_seed_may_be_any_64_bit_number(model: Model) -> None:
    answers = set()
    for seed in (0, 1, -1, 2**63 - 1, 2**63, 2**64 - 2, -(2**63)):
        sampling = SamplingParams(temperature=2.0, top_k=0, top_p=1.0, seed=seed)
        sequence = sequence_of(PROMPTS[1], slot=0, blocks=blocks_for(1, PROMPTS[1]), sampling=sampling)
        answers.add(tuple(generate(runner_of(model), sequence, 6)))
    assert len(answers) == 6, "2**63 and -(2**63) are the same 64 bits, all others differ"


def test_the_penalty_counts_prompt_and_answer(model: Model) -> None:
    strong = SamplingParams(temperature=0.0, repetition_penalty=1e6)
    sequence = sequence_of(PROMPTS[4], slot=0, blocks=blocks_for(1, PROMPTS[4]), sampling=strong)
    tokens = generate(runner_of(model), sequence, COUNT)
    assert len(set(tokens)) == COUNT
    assert not set(tokens) & set(PROMPTS[4])


def test_what_is_taken_off_counts_the_answer_alone_each_time_anew(model: Model) -> None:
    """A thousand off once is a token's end; a negative one is its reign; a prompt's tokens cost nothing."""
    prompt = PROMPTS[1]
    first = prefill(runner_of(model), sequence_of(prompt, slot=0, blocks=blocks_for(1, prompt)))
    for params, distinct in (({"presence_penalty": 1000.0}, COUNT), ({"frequency_penalty": -1000.0}, 1)):
        sampling = SamplingParams(temperature=0.0, repetition_penalty=1.0, **params)
        sequence = sequence_of([*prompt, first], slot=0, blocks=blocks_for(1, [*prompt, 0]), sampling=sampling)
        free = sequence_of([*prompt, first], slot=0, blocks=blocks_for(1, [*prompt, 0]))
        tokens = generate(runner_of(model), sequence, COUNT)
        assert len(set(tokens)) == distinct
        assert tokens[0] == prefill(runner_of(model), free)


def test_a_bias_decides_at_every_token_and_is_gone_with_its_request(model: Model, alone: list[list[int]]) -> None:
    runner, prompt = runner_of(model), PROMPTS[1]
    bias = ((250, 1000.0), (3, 999.0), (alone[1][0], -1000.0))
    shunning = SamplingParams(temperature=0.0, repetition_penalty=1.0, presence_penalty=2.0, logit_bias=bias)
    biased = sequence_of(prompt, slot=0, blocks=blocks_for(1, prompt), sampling=shunning)
    tokens = generate(runner, biased, COUNT)
    assert tokens[0] == 250
    assert set(tokens) == {250, 3}, "the presence penalty, of less than the difference twice, has them take turns"
    free = sequence_of(prompt, slot=0, blocks=blocks_for(1, prompt))
    assert generate(runner, free, COUNT) == alone[1]


def test_how_often_a_token_was_given_is_counted_up_to_63(model: Model) -> None:
    runner = runner_of(model)
    reign = SamplingParams(temperature=0.0, repetition_penalty=1.0, frequency_penalty=-2.0, presence_penalty=-1000.0)
    sequence = sequence_of([5], slot=1, blocks=blocks_for(1, [0] * 60), new=80, sampling=reign)
    token = prefill(runner, sequence)
    sequence.output.append(token)
    for count in (2, 63, 63):
        decode(runner, [sequence], 1 if count == 2 else 61 if len(sequence.output) == 2 else 10)
        assert int(runner.slots.parameters.marks[1, token]) == SEEN + count * ONCE
    runner.admit(sequence)  # as after a lost step
    assert int(runner.slots.parameters.marks[1, token]) == SEEN + 63 * ONCE
    assert int((runner.slots.parameters.marks[1] > 0).sum()) == len({5, token})


def test_a_restricted_slot_is_given_the_best_of_what_is_allowed_and_its_neighbours_what_they_would_have(
    model: Model, alone: list[list[int]]
) -> None:
    runner, vocab = runner_of(model, num_blocks=96), model.config.vocab_size
    sequences = all_sequences()
    for sequence in sequences:
        sequence.output.append(prefill(runner, sequence))
    choices = {1: [3, 9, vocab - 1], 2: [vocab - 2]}
    for _ in range(3):
        runner.restrict([sequences[at].slot for at in choices], bits_of([*choices.values()], vocab))
        decode(runner, sequences, 1)
    for at, sequence in enumerate(sequences):
        if at in choices:
            assert set(sequence.output[1:]) <= set(choices[at])
        else:
            assert sequence.output == alone[at][:4]


def test_a_restriction_ends_with_the_slots_owner(model: Model, alone: list[list[int]]) -> None:
    runner = runner_of(model)
    first = sequence_of(PROMPTS[0], slot=2, blocks=blocks_for(1, PROMPTS[0]))
    runner.admit(first)
    runner.restrict([2], bits_of([[7]], model.config.vocab_size))
    assert runner.launch(StepPlan([Chunk(first, 0, 1)], [])).tokens() == [7]
    assert generate(runner, sequence_of(PROMPTS[1], slot=2, blocks=blocks_for(9, PROMPTS[1])), COUNT) == alone[1]


def test_what_is_forbidden_says_nothing_of_what_was_seen(model: Model) -> None:
    """A byte holds both: the penalty must not fall on what is forbidden, nor be lifted from what was seen."""
    runner, prompt = runner_of(model), PROMPTS[4]
    runner.admit(sequence_of(prompt, slot=0, blocks=blocks_for(1, prompt)))
    for _ in range(2):
        runner.restrict([0], bits_of([[1, 2, 3]], model.config.vocab_size))
    marks = runner.slots.parameters.marks[0]
    assert ((marks & SEEN) > 0).nonzero().flatten().tolist() == sorted(set(prompt))
    assert ((marks & FORBIDDEN) == 0).nonzero().flatten().tolist() == [1, 2, 3]
    assert not runner.slots.parameters.marks[1:].any()


class ExhaustedModel(Model):
    """A model whose device is out of memory for some forward passes."""

    failures = 0

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attention: Attention) -> torch.Tensor:
        hidden = super().forward(tokens, positions, attention)
        if self.failures:
            self.failures -= 1
            raise torch.OutOfMemoryError("tried to allocate 1 GiB")
        return hidden


@pytest.fixture
def exhausted(model: Model) -> ExhaustedModel:
    copy = ExhaustedModel.__new__(ExhaustedModel)
    copy.__dict__.update(model.__dict__)
    return copy


def test_a_step_out_of_memory_is_run_again_with_the_same_result(
    exhausted: ExhaustedModel, alone: list[list[int]]
) -> None:
    runner, sequence = runner_of(exhausted), all_sequences()[3]
    runner.admit(sequence)
    tokens = []
    for plan in _plans(sequence):
        exhausted.failures = 1
        tokens += runner.launch(plan).tokens()
    assert tokens == alone[3][: len(tokens)]


@pytest.mark.parametrize(("failures", "gives_back"), [(0, 0), (1, 1), (2, 1)])
def test_the_allocators_spare_memory_is_given_back_before_the_second_attempt(
    exhausted: ExhaustedModel, monkeypatch: pytest.MonkeyPatch, failures: int, gives_back: int
) -> None:
    """What it keeps for shapes of earlier steps is what this step may lack."""
    failures_left: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: failures_left.append(exhausted.failures))
    runner, sequence = runner_of(exhausted), all_sequences()[3]
    runner.admit(sequence)
    exhausted.failures = failures
    with pytest.raises(OutOfMemory) if failures == 2 else nullcontext():
        runner.launch(_plans(sequence)[0])
    assert failures_left == [failures - 1] * gives_back


def test_a_step_out_of_memory_twice_is_given_up_and_changes_nothing(
    exhausted: ExhaustedModel, alone: list[list[int]]
) -> None:
    runner, sequence = runner_of(exhausted), all_sequences()[3]
    runner.admit(sequence)
    tokens = []
    for plan in _plans(sequence):
        exhausted.failures = 2
        with pytest.raises(OutOfMemory, match="1 GiB"):
            runner.launch(plan)
        tokens += runner.launch(plan).tokens()
    assert tokens == alone[3][: len(tokens)]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_slot_is_filled_when_there_is_room_at_the_second_attempt(
    model: Model, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """What it uploads is small, and memory can be full all the same."""
    runner, sequence = runner_of(model), all_sequences()[3]
    left, fill = [torch.OutOfMemoryError("tried to allocate 2 MiB")] * failures, runner.slots.admit

    def admit(it: Sequence) -> None:
        if left:
            raise left.pop()
        fill(it)

    monkeypatch.setattr(runner.slots, "admit", admit)
    with pytest.raises(OutOfMemory, match="2 MiB") if failures == 2 else nullcontext():
        runner.admit(sequence)
    runner.admit(sequence)
    assert left == []


def _plans(sequence: Sequence) -> list[StepPlan]:
    length = sequence.prompt_length
    chunks = [StepPlan([Chunk(sequence, 0, 9)], []), StepPlan([Chunk(sequence, 9, length)], [])]
    return chunks + [StepPlan([], [Decode(sequence, length + i)]) for i in range(10)]


def test_a_sequence_admitted_again_goes_on_where_the_host_knows_it_to_be(model: Model, alone: list[list[int]]) -> None:
    """After a lost step the device may be a token ahead, or have drawn what nobody got."""
    strong = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    counted = SamplingParams(temperature=0.0, repetition_penalty=1.0, frequency_penalty=0.5, presence_penalty=0.1)
    for sampling, expected in ((GREEDY, alone[3]), (strong, None), (counted, None)):
        sequence = sequence_of(PROMPTS[3], slot=2, blocks=blocks_for(1, PROMPTS[3]), sampling=sampling)
        whole = expected or generate(runner_of(model), sequence, COUNT)
        runner, sequence = runner_of(model), sequence_of(PROMPTS[3], slot=2, blocks=sequence.blocks, sampling=sampling)
        sequence.output.append(prefill(runner, sequence))
        decode(runner, [sequence], 5)
        lost = Decode(sequence, sequence.prompt_length + len(sequence.output) - 1)
        runner.launch(StepPlan([], [lost])).tokens()
        runner.admit(sequence)
        rest = [runner.launch(StepPlan([], [lost])).tokens()[0]]
        for step in range(1, 8):
            rest += runner.launch(StepPlan([], [Decode(sequence, lost.position + step)])).tokens()
        assert [*sequence.output, *rest] == whole[: len(sequence.output) + 8]


def test_a_runner_says_what_it_has(model: Model) -> None:
    runner: TorchRunner = runner_of(model, num_blocks=10, max_running=3)
    assert (runner.num_blocks, runner.block_size, runner.max_running) == (10, BLOCK_SIZE, 3)


def test_a_sequence_may_fill_the_model_to_its_last_position(tmp_path: Path) -> None:
    model = load_native(write_checkpoint(tmp_path, Shape(max_positions=3 * BLOCK_SIZE)))
    prompt = list(range(1, 3 * BLOCK_SIZE - 2))
    sequence = sequence_of(prompt, slot=0, blocks=[1, 2, 3], new=3)
    tokens = generate(runner_of(model), sequence, 3)
    assert len(tokens) == 3
