"""The sampling kernels draw the very tokens that `service.engine.sampling` draws, and that float64 allows."""

from collections.abc import Callable, Sequence

import pytest
import torch
from msgspec.structs import replace

from service.engine import sampling
from service.engine.base import SamplingParams
from service.engine.defaults import MOST_BIASED
from service.engine.kernels import torch_ops
from service.engine.kernels.ops import Ops
from service.engine.kernels.sample_check import sampling_slots
from tests.engine.kernels import exact_sampling
from tests.engine.kernels.conftest import ROWS, Subject, kernels

pytestmark = [
    # Excluded tokens become minus infinity, and a row of nothing but NaN is one of the cases: as on a GPU.
    pytest.mark.filterwarnings("ignore:overflow encountered in divide:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

BIAS = ((0, 13.0), (1, -100.0), (2, 12.5), (3, 0.125), (4, 11.0))
PARAMS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repetition_penalty=1.5),
    SamplingParams(),
    SamplingParams(top_k=1),
    SamplingParams(top_k=64, top_p=1.0, seed=-7, repetition_penalty=1.3),
    SamplingParams(top_k=0, top_p=0.8, seed=1 << 62),
    SamplingParams(top_k=0, top_p=1e-9),
    SamplingParams(top_k=0, top_p=1.0, seed=9),
    SamplingParams(top_k=100, top_p=0.9),
    SamplingParams(top_k=10_000_000, top_p=0.5),
    SamplingParams(temperature=0.01, seed=5),
    SamplingParams(temperature=30.0, top_k=0, top_p=0.9),
    SamplingParams(temperature=5.0, top_k=700, top_p=0.9, repetition_penalty=0.8),
    SamplingParams(top_k=0, top_p=1.0, min_p=0.05, seed=4),
    SamplingParams(temperature=3.0, top_k=0, top_p=0.95, min_p=1e-4, presence_penalty=1.5, seed=6),
    SamplingParams(top_k=700, top_p=1.0, min_p=0.02, frequency_penalty=0.3, seed=8),
    SamplingParams(top_k=700, top_p=0.9, min_p=0.001, frequency_penalty=-0.01, presence_penalty=-2.0, seed=8),
    SamplingParams(temperature=0.0, frequency_penalty=2.0, presence_penalty=0.1, repetition_penalty=1.1),
    SamplingParams(temperature=0.0, logit_bias=((4, 100.0),)),
    SamplingParams(top_k=0, top_p=1.0, logit_bias=BIAS, seed=3),
    SamplingParams(top_k=3, top_p=0.9, repetition_penalty=2.0, presence_penalty=0.5, logit_bias=BIAS, seed=12),
    SamplingParams(temperature=9.0, top_k=0, top_p=0.9, logit_bias=BIAS, seed=13),
]
# fewer tokens than a group, more than the best groups; off every border
VOCABULARIES = [(5, torch.float32), (8193, torch.bfloat16), (12_001, torch.float32)]


def some_marks(rows: int, vocab: int) -> torch.Tensor:
    """A tenth of all tokens seen, half of them in the answer, up to more often than is counted."""
    seen = torch.rand(rows, vocab) < 0.1
    count = (torch.rand(rows, vocab) < 0.5) * torch.randint(0, sampling.MOST_COUNTED + 1, (rows, vocab))
    return seen * (sampling.SEEN + count * sampling.ONCE)


def draw_both(
    subject: Subject,
    logits: torch.Tensor,
    seen: torch.Tensor,
    params: Sequence[SamplingParams],
    position: int = 100,
) -> tuple[list[int], list[int]]:
    """Tokens of the subject, which are held against float64, and those of torch on the CPU. `seen`: marks, or truth."""
    marks = seen.to(torch.uint8)
    positions = torch.arange(len(params)) + position - 1
    methods = {sampling.method_of(p, logits.shape[1]) for p in params}
    numbers = torch.arange(len(params)).flip(0)
    torchs = sampling_slots(params, marks, positions)
    expected = torch_ops.sample(logits.float().flip(0), torchs, numbers, methods)
    mine = sampling_slots(params, marks.to(subject.device), positions)
    drawn = subject.ops.sample(logits.flip(0).to(subject.device), mine, numbers.to(subject.device), methods)
    for one, other in ((mine.tokens, torchs.tokens), (mine.positions, torchs.positions)):
        assert one.tolist() == other.tolist()
    assert torch.equal(mine.parameters.marks.cpu(), torchs.parameters.marks)
    tokens = drawn.flip(0).tolist()
    assert exact_sampling.strays(tokens, logits, marks, params, position) == []
    return tokens, expected.flip(0).tolist()


@pytest.mark.parametrize(("vocab", "dtype"), VOCABULARIES)
def test_every_method_draws_torchs_tokens(kernel_subject: Subject, vocab: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    logits = (torch.randn(len(PARAMS), vocab) * 3).to(dtype)
    drawn, expected = draw_both(kernel_subject, logits, some_marks(len(PARAMS), vocab), PARAMS)
    assert drawn == expected


@pytest.mark.parametrize("rows", ROWS)
def test_every_row_of_every_batch_size_draws_torchs_token(kernel_subject: Subject, rows: int) -> None:
    torch.manual_seed(rows)
    params = [PARAMS[(rows + row) % len(PARAMS)] for row in range(rows)]
    logits = (torch.randn(rows, 300) * 3).bfloat16()
    drawn, expected = draw_both(kernel_subject, logits, some_marks(rows, 300), params)
    assert drawn == expected


@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_hundreds_of_draws_of_torchs_are_those_of_float64(params: SamplingParams) -> None:
    """What the kernels are held to: a top_p that is a hundredth off changes one draw in a hundred."""
    torch.manual_seed(5)
    rows = 500
    draw_both(
        Subject(Ops(), torch.device("cpu")), torch.randn(rows, 300) * 3, torch.rand(rows, 300) < 0.5, [params] * rows
    )


@pytest.mark.slow
def test_the_served_vocabulary(kernel_subject: Subject) -> None:
    torch.manual_seed(3)
    params = [SamplingParams(seed=8), SamplingParams(temperature=0.0)]
    logits = torch.randn(len(params), 128_512) * 2
    drawn, expected = draw_both(kernel_subject, logits, torch.rand(len(params), 128_512) < 0.01, params)
    assert drawn == expected


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=0, top_p=1.0),
        SamplingParams(top_k=50, top_p=0.9),
        SamplingParams(top_k=0, top_p=0.9, temperature=30.0),
    ],
    ids=str,
)
def test_many_tokens_may_be_biased_wherever_they_are(kernel_subject: Subject, params: SamplingParams) -> None:
    """Named in no order. Several decide between themselves, and one of the first and the last of what a program reads
    may be among them."""
    vocab, random = 12_001, torch.Generator().manual_seed(9)
    tokens = torch.randperm(vocab, generator=random)[: MOST_BIASED - 6].tolist()
    edges = [at for at in (0, 127, 128, 4096, 8191, vocab - 1) if at not in tokens]
    bias = tuple((token, 8.0 + (place * 7 % 13) / 4) for place, token in enumerate([*tokens, *edges]))
    rows = [replace(params, seed=seed, logit_bias=bias) for seed in range(5)]
    logits = torch.randn(len(rows), vocab, generator=random)
    drawn, expected = draw_both(kernel_subject, logits, some_marks(len(rows), vocab), rows)
    assert drawn == expected
    assert params.temperature > 1 or set(drawn) & {token for token, _ in bias}


def test_flat_logits_are_searched_to_the_last_token(kernel_subject: Subject) -> None:
    """Everything ties: no group is better than another, so nothing may be decided from the best groups alone."""
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=0, top_p=0.5, seed=1),
        SamplingParams(top_k=500, top_p=1.0, seed=2),
        SamplingParams(top_k=0, top_p=1.0, seed=3),
    ]
    vocab = 9000
    drawn, expected = draw_both(
        kernel_subject, torch.full((4, vocab), 2.5), torch.zeros(4, vocab, dtype=torch.bool), params
    )
    assert drawn == expected
    assert drawn[0] == 0


GRAMMARS = {
    "one token": lambda token, vocab: token == vocab // 2,
    "a few, far apart": lambda token, vocab: token % (vocab // 4) == 3,
    "a run": lambda token, vocab: (token > vocab // 3) & (token < vocab // 3 + 200),
    "more than top_k, less than the best groups": lambda token, vocab: token % 101 == 0,
    "nearly all": lambda token, vocab: token % 11 != 0,
}
"""Tokens that a grammar allows."""


@pytest.mark.parametrize("vocab", [700, 12_001])
@pytest.mark.parametrize("allowed", GRAMMARS.values(), ids=GRAMMARS)
def test_what_a_grammar_forbids_is_not_drawn_and_what_it_allows_is_as_torch_draws_it(
    kernel_subject: Subject, vocab: int, allowed: Callable[[torch.Tensor, int], torch.Tensor]
) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(len(PARAMS), vocab) * 3
    is_allowed = allowed(torch.arange(vocab), vocab).expand(len(PARAMS), -1)
    marks = (torch.rand(len(PARAMS), vocab) < 0.1) * sampling.SEEN + ~is_allowed * sampling.FORBIDDEN
    drawn, expected = draw_both(kernel_subject, logits, marks, PARAMS)
    assert drawn == expected
    assert is_allowed[0, drawn].all()


def test_a_grammar_that_allows_little_needs_no_search_of_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The usual top_k is more than a grammar mostly leaves; a search would take 0.3 ms a row."""
    subject = kernels("interpreter")  # in which a function can be replaced
    import triton

    from service.engine.kernels import sampling as sampling_kernels

    @triton.jit
    def unwanted(logits, marks, factor, heat, best, first, second, k, p, vocab):  # type: ignore[no-untyped-def]
        return vocab * 0 + 1

    monkeypatch.setattr(sampling_kernels, "draw_from_vocabulary", unwanted)
    vocab = 12_001
    is_allowed = (torch.arange(vocab) % 1000 == 7).expand(3, -1)
    params = [SamplingParams(), SamplingParams(top_k=50, top_p=1.0), SamplingParams(top_k=0, top_p=0.9)]
    logits = torch.randn(3, vocab)
    drawn, expected = draw_both(subject, logits, ~is_allowed * sampling.FORBIDDEN, params)
    assert drawn == expected


# parameters, vocabulary, spread of the logits and where they lie. Of 16,000 tokens half are outside the best groups.
DRAWN_OFTEN = {
    "top_p of what top_k left": (SamplingParams(top_k=40, top_p=0.5, temperature=3.0), 300, 3.0, 0.0),
    "top_p of what a large top_k left": (SamplingParams(top_k=4000, top_p=0.4), 16_000, 0.2, 0.0),
    "a flat top_p": (SamplingParams(top_k=0, top_p=0.9), 16_000, 0.1, 0.0),
    "a small top_p of much": (SamplingParams(top_k=0, top_p=0.05, temperature=0.7), 16_000, 0.3, 0.0),
    "a penalty on scores below zero": (SamplingParams(top_k=20, repetition_penalty=3.0), 300, 0.3, -0.8),
}


@pytest.mark.parametrize(("params", "vocab", "spread", "shift"), DRAWN_OFTEN.values(), ids=DRAWN_OFTEN)
def test_many_draws_are_torchs(
    kernel_subject: Subject, params: SamplingParams, vocab: int, spread: float, shift: float
) -> None:
    """A bound that is a little off changes one draw in several only."""
    torch.manual_seed(11)
    rows = 16 if vocab < 1000 else 5  # a search of the whole vocabulary takes an interpreter half a second
    logits = torch.randn(rows, vocab) * spread + shift
    drawn, expected = draw_both(kernel_subject, logits, torch.rand(rows, vocab) < 0.5, [params] * rows)
    assert drawn == expected


def test_a_tie_at_the_kth_place_keeps_all_that_tie(kernel_subject: Subject) -> None:
    """30 tokens, spread over the vocabulary, share the second place of a top_k of 2: each of them can be drawn."""
    vocab = 9000
    logits = torch.full((1, vocab), -5.0)
    tied = torch.arange(30) * 299 + 7
    logits[0, tied] = 3.0
    logits[0, 4500] = 3.5
    rows = 12
    params = [SamplingParams(top_k=2, top_p=1.0, seed=seed, repetition_penalty=1.0) for seed in range(rows)]
    seen = torch.zeros(rows, vocab, dtype=torch.bool)
    drawn, expected = draw_both(kernel_subject, logits.repeat(rows, 1), seen, params)
    assert drawn == expected
    assert set(drawn) <= {4500, *tied.tolist()}
    assert len(set(drawn)) > 3


def test_a_banned_token_and_a_spoiled_row_yield_a_token_of_the_vocabulary(kernel_subject: Subject) -> None:
    logits = torch.randn(3, 300)
    logits[0, 10:] = -torch.inf
    logits[1] = torch.nan
    logits[2] = -torch.inf
    device = kernel_subject.device
    seen = torch.zeros(3, 300, dtype=torch.bool, device=device)
    slots = sampling_slots([SamplingParams()] * 3, seen, torch.arange(3))
    drawn = kernel_subject.ops.sample(logits.to(device), slots, torch.arange(3, device=device), set()).tolist()
    assert drawn[0] < 10
    assert all(0 <= token < 300 for token in drawn)


def test_a_row_draws_the_same_alone_and_in_a_batch(kernel_subject: Subject) -> None:
    torch.manual_seed(1)
    vocab, device = 1000, kernel_subject.device
    logits = torch.randn(len(PARAMS), vocab)
    seen = torch.rand(len(PARAMS), vocab) < 0.1
    together, _ = draw_both(kernel_subject, logits, seen, PARAMS)
    for row, params in enumerate(PARAMS):
        slots = sampling_slots([params], seen[row : row + 1].to(device), torch.tensor([99 + row]))
        number = torch.zeros(1, dtype=torch.int64, device=device)
        alone = kernel_subject.ops.sample(logits[row : row + 1].to(device), slots, number, set())
        assert alone.tolist() == together[row : row + 1]


def test_rows_of_padding_leave_the_spare_slot_where_it_is(subject: Subject) -> None:
    """Its position grows with no step: it would run out of the block table in time."""
    device = subject.device
    slots = sampling_slots(
        [SamplingParams()] * 2, torch.zeros(2, 300, dtype=torch.bool, device=device), torch.tensor([7, 8])
    )
    numbers = torch.tensor([slots.spare, 1, slots.spare, slots.spare], device=device)
    for step in range(3):
        drawn = subject.ops.sample(torch.randn(4, 300, device=device), slots, numbers, {sampling.Method.CANDIDATES})
        assert slots.positions.tolist() == [7, 9 + step, 0]
        assert slots.tokens[1] == drawn[1]
        assert slots.parameters.marks[1, drawn[1]]
    assert not slots.parameters.marks[0].any()


def test_the_noise_is_bit_for_bit_that_of_torch_but_for_the_logarithm(kernel_subject: Subject) -> None:
    import triton

    from tests.engine.kernels.noise_kernel import noise_kernel

    device = kernel_subject.device
    seeds = torch.tensor([0, 1, -1, 1 << 62, -(1 << 63), 123_456_789], device=device)
    positions = torch.tensor([0, 1, 5, 32_767, 77, 4096], device=device)
    tokens = torch.arange(0, 128_512, 53, dtype=torch.int64, device=device)
    keys = sampling.row_keys(seeds, positions)
    expected = sampling.gumbel(keys, tokens)
    noise = torch.empty(len(seeds), len(tokens), device=device)
    found = torch.empty(2, len(seeds), dtype=torch.int32, device=device)
    noise_kernel[(len(seeds),)](
        seeds,
        positions,
        tokens.to(torch.int32),
        noise,
        *found,
        len(tokens),
        BLOCK=triton.next_power_of_2(len(tokens)),
    )
    assert torch.equal(found[0], keys[0])
    assert torch.equal(found[1], keys[1])
    torch.testing.assert_close(noise, expected, rtol=2e-6, atol=1e-6)
