"""What tokens are reported with: the model's own log-probabilities, whatever the step, the batch and the sampling."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from service.engine.base import Core, EngineConfig, FinishReason, GenerationRequest, Logprobs, SamplingParams, Token
from service.engine.cuda.paths import Paths
from service.engine.defaults import MOST_LOGPROBS
from service.engine.fake import FakeCore
from service.engine.logprobs import ROWS_AT_ONCE, Report, logprobs_of
from service.engine.model import Model
from service.engine.runner import TorchRunner
from service.engine.startup.build import build_core
from service.engine.steps.pending import PendingTokens
from service.engine.steps.plan import Chunk, Decode, Sequence, StepPlan
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import drain, reasons_of, tokens_of
from tests.support.engines import GREEDY, a_request, fake_config
from tests.support.plans import load_native, logits_of, prefill, runner_of, sequence_of
from tests.support.speaking import CITY, VOCAB, Speaker, write_speaking_checkpoint
from tests.support.tape import TapeRecorder

CLOSE = {"rel": 1e-4, "abs": 1e-4}
PROMPTS = [[7, 8, 9], list(range(20, 41)), [5]]


def of_logits(logits: torch.Tensor, token: int, count: int) -> Logprobs:
    """The definition, in float64."""
    each = logits.double().softmax(-1).log()
    order = each.argsort(descending=True, stable=True)[:count]
    return Logprobs(float(each[token]), order.tolist(), each[order].tolist())


def require_equal(given: Logprobs | None, expected: Logprobs) -> None:
    assert given is not None
    assert given.own == pytest.approx(expected.own, **CLOSE)
    assert given.tokens == expected.tokens
    assert given.values == pytest.approx(expected.values, **CLOSE)


def report(asked: dict[int, int], hidden: torch.Tensor, head: torch.Tensor) -> Report:
    return Report(asked, hidden, lambda rows: rows @ head.T, torch.tensor)


@pytest.fixture
def head() -> torch.Tensor:
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(2 * ROWS_AT_ONCE + 3, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "asked",
    [{0: 0}, {2: 5, 0: 0, 1: MOST_LOGPROBS}, {row: row % 4 for row in range(2 * ROWS_AT_ONCE + 3)}, {3: 300, 4: 1}],
    ids=["one, itself alone", "out of order", "more than are widened at once", "the whole vocabulary"],
)
def test_rows_that_ask_get_the_softmax_of_their_own_logits(
    hidden: torch.Tensor, head: torch.Tensor, asked: dict[int, int]
) -> None:
    drawn = torch.arange(len(hidden)) * 4
    tokens, scores = (made := report(asked, hidden, head)).around(lambda: drawn)
    assert tokens is drawn
    given = made.read(scores)
    assert list(given) == list(asked)
    for place, count in asked.items():
        require_equal(given[place], of_logits(hidden[place] @ head.T, 4 * place, count))


def test_more_of_the_likeliest_than_there_are_tokens_is_all_of_them() -> None:
    hidden, head = torch.ones(1, 2), torch.eye(3, 2)
    made = report({0: MOST_LOGPROBS}, hidden, head)
    given = made.read(made.around(lambda: torch.tensor([2]))[1])[0]
    assert sorted(given.tokens) == [0, 1, 2]
    require_equal(logprobs_of((hidden @ head.T)[0], 2, MOST_LOGPROBS), given)


def test_logits_of_sixteen_bits_are_summed_up_in_fp32(hidden: torch.Tensor, head: torch.Tensor) -> None:
    """The logarithm of a sum over a vocabulary, rounded to bfloat16, is off by more than the logits are."""
    short, wide = hidden.bfloat16(), head.bfloat16()
    made = report({0: 3, 2: 0}, short, wide)
    given = made.read(made.around(lambda: torch.arange(len(hidden)))[1])
    for place, count in ((0, 3), (2, 0)):
        require_equal(given[place], of_logits(short[place] @ wide.T, place, count))


def test_of_equally_likely_tokens_the_one_that_was_drawn_is_named_first() -> None:
    """Which of them are among the likeliest, and in what order, is chance."""
    head = torch.tensor([[3.0], [1.0], [1.0], [1.0], [0.0]])
    for drawn in range(5):
        made = report({0: 2}, torch.ones(1, 1), head)
        given = made.read(made.around(lambda drawn=drawn: torch.tensor([drawn]))[1])[0]
        assert given.tokens[0] == 0
        assert (given.tokens[1] == drawn) == (drawn in (1, 2, 3))
        assert given.values == sorted(given.values, reverse=True)
        assert logprobs_of(head[:, 0], drawn, 2).tokens[1] == given.tokens[1] or drawn not in (1, 2, 3)


def test_logits_are_those_of_all_rows_that_are_sampled_together(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer rows another kernel may compute them, and round otherwise."""
    runner, served = runner_for(model, "recorded"), sequences(None, 1, None)
    for sequence in served:
        sequence.output.append(prefill(runner, sequence))
    rows = []
    logits_of = Model.logits
    monkeypatch.setattr(Model, "logits", lambda self, hidden: rows.append(len(hidden)) or logits_of(self, hidden))
    runner.launch(StepPlan([], [Decode(sequence, sequence.prompt_length) for sequence in served]))
    assert rows == [4], "the bucket's; what is recorded calls nothing"


class Noted(TorchDispatchMode):
    """Says which operations ran, and when the tokens were drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.said.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_is_allocated_once_the_tokens_are_drawn(hidden: torch.Tensor, head: torch.Tensor) -> None:
    """The slots have advanced then: what lacked memory could not be done again."""
    tokens = torch.arange(len(hidden))
    with Noted() as noted:

        def draw() -> torch.Tensor:
            noted.said.append("drawn")
            return tokens

        report({1: 2, 5: 0}, hidden, head).around(draw)
    behind = noted.said[noted.said.index("drawn") + 1 :]
    computed = [name for name in behind if "out" in name]
    assert computed == ["aten.index_select.out", "aten.gather.out"]
    assert set(behind) - set(computed) <= {"aten.slice.Tensor", "aten.unsqueeze.default"}, "views, and no more"


def test_a_step_that_lacks_memory_for_its_report_draws_once(hidden: torch.Tensor, head: torch.Tensor) -> None:
    lacking = [torch.OutOfMemoryError("tried to allocate 66 MiB")]
    drawn = []

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        if lacking:
            raise lacking.pop()
        return rows @ head.T

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.tensor([3])

    pending = PendingTokens(draw, Report({0: 1}, hidden, logits_of, torch.tensor))
    pending.sample()
    assert (drawn, pending.tokens()) == ([1], [3])
    require_equal(pending.logprobs()[0], of_logits(hidden[0] @ head.T, 3, 1))


# Through the runner: whatever computes a step, the rows that ask get what the model says at their positions.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    return load_native(write_checkpoint(tmp_path_factory.mktemp("model"), Shape(heads=4, kv_heads=2)))


def runner_for(model: Model, kind: str) -> TorchRunner:
    if kind == "plain":
        return runner_of(model)
    runner = runner_of(model, paths=Paths(plans_decode=True, buckets=(1, 2, 4, 8)))
    if kind == "recorded":
        runner.record(TapeRecorder())
        runner.record_segments(TapeRecorder(), 100)
    return runner


def sequences(*counts: int | None) -> list[Sequence]:
    sampling = SamplingParams(temperature=1.5, repetition_penalty=1.3, presence_penalty=1.0, seed=5)
    return [
        sequence_of(prompt, slot=2 * row, blocks=list(range(1 + 8 * row, 9 + 8 * row)), sampling=sampling, logprobs=n)
        for row, (prompt, n) in enumerate(zip(PROMPTS, counts, strict=True))
    ]


def require_the_models(model: Model, pending: PendingTokens, sampled: list[Sequence]) -> None:
    """Reports of a step whose tokens are not in `output` yet; they are, afterwards."""
    tokens, given = pending.tokens(), pending.logprobs()
    assert list(given) == [place for place, each in enumerate(sampled) if each.request.logprobs is not None]
    for place, (sequence, token) in enumerate(zip(sampled, tokens, strict=True)):
        if place in given:
            logits = logits_of(model, [*sequence.request.prompt_ids, *sequence.output], torch.float32)[-1]
            require_equal(given[place], of_logits(logits, token, sequence.request.logprobs or 0))
        sequence.output.append(token)


@pytest.mark.parametrize("kind", ["plain", "planned", "recorded"])
@pytest.mark.parametrize("counts", [(3, None, 0), (None, None, 2), (None, 1, None), (None, None, 0)])
def test_any_step_reports_what_the_model_says_before_penalties_and_temperature(
    model: Model, kind: str, counts: tuple[int | None, ...]
) -> None:
    runner = runner_for(model, kind)
    first, second, third = served = sequences(*counts)
    for sequence in served:
        runner.admit(sequence)
    whole = [Chunk(sequence, 0, sequence.prompt_length) for sequence in served]
    require_the_models(model, runner.launch(StepPlan([whole[0]], [])), [first])
    mixed = StepPlan([whole[1], whole[2]], [Decode(first, first.prompt_length)])
    require_the_models(model, runner.launch(mixed), [second, third, first])
    for step in range(3):
        plan = [Decode(s, s.prompt_length + len(s.output) - 1) for s in (third, first, second)[: 3 - step // 2]]
        require_the_models(model, runner.launch(StepPlan([], plan)), [each.sequence for each in plan])


def test_a_step_in_which_nobody_asks_computes_no_logits_for_it(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, (first, second, _) = runner_of(model), sequences(None, 2, None)
    computed = []
    logits_of = Model.logits
    monkeypatch.setattr(Model, "logits", lambda self, hidden: computed.append(1) or logits_of(self, hidden))
    prefill(runner, first)
    assert len(computed) == 1
    prefill(runner, second)
    assert len(computed) == 3


# Through whole engines.


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_checkpoint(tmp_path_factory.mktemp("speaking"), Shape(vocab=VOCAB))


def core(model_dir: Path, kind: str = "native", **changes: Any) -> Core:
    fields = {"kind": kind, "model_dir": str(model_dir), "device": "cpu", "threads": 1, "block_size": 16}
    built = build_core(EngineConfig(**(fields | changes)), lambda message: None)
    torch.set_num_threads(1)
    return built


def reports_of(events: list[Any], request: GenerationRequest) -> list[Logprobs | None]:
    return [event.logprobs for event in events if isinstance(event, Token) and event.id == request.id]


def test_both_engines_report_the_same(model_dir: Path) -> None:
    """With a grammar, penalties, and answers of which only some are reported, in steps of any size."""
    speaker = Speaker(model_dir)
    penalized = SamplingParams(
        temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.5, logit_bias=((7, 2.0), (9, 1.5), (11, -100.0))
    )
    in_json = speaker.request("Name a city.", CITY, sampling=penalized, logprobs=4)
    requests = [
        a_request(list(range(3, 60)), new=10, logprobs=MOST_LOGPROBS),
        a_request([5, 6, 7], new=12, sampling=penalized, logprobs=0),
        a_request([9] * 20, new=12),
        in_json,
    ]
    expected = drain(core(model_dir, "reference"), requests)
    for step_tokens in (16, 512):
        events = drain(core(model_dir, step_tokens=step_tokens), requests)
        assert tokens_of(events) == tokens_of(expected)
        for request in requests:
            given, due = reports_of(events, request), reports_of(expected, request)
            assert (None in given) == (request.logprobs is None)
            for one, other in zip(given, due, strict=True):
                if other is not None:
                    require_equal(one, other)


def test_a_prompt_found_in_the_cache_changes_nothing(model_dir: Path) -> None:
    engine, prompt = core(model_dir), list(range(3, 60))
    first, again = (a_request(prompt, new=6, logprobs=3) for _ in range(2))
    expected = reports_of(drain(engine, [first]), first)
    events = drain(engine, [again])
    assert next(event for event in events if isinstance(event, Token)).cached_tokens
    for one, other in zip(reports_of(events, again), expected, strict=True):
        assert other is not None
        require_equal(one, other)


@pytest.mark.parametrize("kind", ["native", "reference", "fake"])
@pytest.mark.parametrize("count", [-1, MOST_LOGPROBS + 1])
def test_more_of_the_likeliest_than_are_told_is_refused_with_the_number(model_dir: Path, kind: str, count: int) -> None:
    engine = FakeCore(fake_config()) if kind == "fake" else core(model_dir, kind)
    (finish,) = engine.add(a_request(logprobs=count))
    assert getattr(finish, "reason", None) is FinishReason.REJECTED
    assert str(count) in finish.message  # type: ignore[union-attr]
    assert str(MOST_LOGPROBS) in finish.message  # type: ignore[union-attr]


def test_an_echo_has_no_probabilities() -> None:
    asked = a_request(logprobs=0, sampling=GREEDY)
    events = FakeCore(fake_config()).add(asked)
    assert reasons_of(events) == {asked.id: FinishReason.REJECTED}
