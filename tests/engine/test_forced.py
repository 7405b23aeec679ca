"""Answers that begin with tokens which are there already: what the model makes of each, and how it goes on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.engine.base import Core, FinishReason, GenerationRequest, Logprobs, SamplingParams, Token
from service.engine.grammars.compiler import GrammarCompiler
from service.engine.grammars.forced import ForcedTokens
from tests.engine.test_logprobs import core, of_logits, require_equal
from tests.support.checkpoints import Shape
from tests.support.driving import drain, reasons_of, tokens_of
from tests.support.engines import GREEDY, a_request
from tests.support.plans import load_native, logits_of
from tests.support.speaking import CITY, VOCAB, Speaker, write_speaking_checkpoint

KINDS = pytest.mark.parametrize("kind", ["native", "reference"])
TEXT = [7, 8, 9, *range(40, 70), 8, 8, 311]
SAMPLED = SamplingParams(temperature=1.5, top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=1.3, seed=5)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_checkpoint(tmp_path_factory.mktemp("speaking"), Shape(vocab=VOCAB))


@pytest.fixture(scope="module")
def expected(model_dir: Path) -> list[Logprobs]:
    """What the model makes of each token of the text but the first, by its definition."""
    logits = logits_of(load_native(model_dir), TEXT, torch.float32)
    return [of_logits(row, token, 3) for row, token in zip(logits, TEXT[1:], strict=False)]


def scored(*, new: int = 4, **changes: Any) -> GenerationRequest:
    return a_request(TEXT[:1], **({"new": len(TEXT) - 1 + new, "forced": TEXT[1:], "logprobs": 3} | changes))


def reports_of(events: list[Any], request: GenerationRequest) -> list[Logprobs]:
    return [event.logprobs for event in events if isinstance(event, Token) and event.id == request.id]


def require_scored(events: list[Any], request: GenerationRequest, expected: list[Logprobs]) -> None:
    assert tokens_of(events)[request.id][: len(TEXT) - 1] == TEXT[1:]
    for given, due in zip(reports_of(events, request), expected, strict=False):
        require_equal(given, due)


@KINDS
def test_every_token_of_a_text_is_reported_and_the_answer_goes_on_behind_it(
    model_dir: Path, expected: list[Logprobs], kind: str
) -> None:
    request, plain = scored(), a_request(TEXT, new=4)
    events = drain(core(model_dir, kind), [request])
    require_scored(events, request, expected)
    assert tokens_of(events)[request.id][len(TEXT) - 1 :] == tokens_of(drain(core(model_dir, kind), [plain]))[plain.id]
    assert reasons_of(events) == {request.id: FinishReason.LENGTH}


@KINDS
def test_however_the_answer_is_drawn_the_text_is_the_text(model_dir: Path, expected: list[Logprobs], kind: str) -> None:
    request = scored(sampling=SAMPLED)
    require_scored(drain(core(model_dir, kind), [request]), request, expected)


@KINDS
def test_no_token_of_a_text_ends_the_answer(model_dir: Path, expected: list[Logprobs], kind: str) -> None:
    """A conversation, for one, has the end of each of its turns in it. Behind the text they end it as ever."""
    (plain,) = tokens_of(drain(core(model_dir, kind), [a_request(TEXT, new=2)])).values()
    request = scored(stop=[TEXT[1], TEXT[-1], plain[1]])
    events = drain(core(model_dir, kind), [request])
    require_scored(events, request, expected)
    assert reasons_of(events) == {request.id: FinishReason.STOP}
    assert len(tokens_of(events)[request.id]) <= len(TEXT) - 1 + 2


@pytest.mark.parametrize("step_tokens", [16, 512])
def test_texts_are_scored_beside_answers_that_are_free_or_keep_to_grammars(
    model_dir: Path, expected: list[Logprobs], step_tokens: int
) -> None:
    speaker = Speaker(model_dir)
    others = [a_request([5, 6, 7], new=30), speaker.request("Name a city.", CITY), a_request(list(range(90)), new=9)]
    alone = [tokens_of(drain(core(model_dir), [each]))[each.id] for each in others]
    texts = [scored(), scored(sampling=SAMPLED), scored(new=1)]
    events = drain(core(model_dir, step_tokens=step_tokens), [texts[0], *others, *texts[1:]])
    for each in texts:
        require_scored(events, each, expected)
    assert [tokens_of(events)[each.id] for each in others] == alone


def test_a_slot_that_scored_a_text_is_as_free_as_before(model_dir: Path) -> None:
    engine: Core = core(model_dir, max_running=1)
    plain = a_request([5, 6, 7], new=12)
    expected = tokens_of(drain(core(model_dir), [plain]))[plain.id]
    drain(engine, [scored()])
    assert tokens_of(drain(engine, [plain]))[plain.id] == expected


def test_a_text_whose_client_leaves_leaves_nothing(model_dir: Path) -> None:
    engine, request = core(model_dir), scored()
    assert engine.add(request) == []
    for _ in range(5):
        engine.step()
    (finish,) = engine.cancel(request.id)
    assert getattr(finish, "reason", None) is FinishReason.CANCELLED
    drain(engine, [])
    assert engine.stats().kv_blocks_used == 0


def test_a_likelihood_is_that_of_the_whole_text(model_dir: Path, expected: list[Logprobs]) -> None:
    """What a measure of models sums up."""
    request = scored(new=1, logprobs=0)
    told = reports_of(drain(core(model_dir), [request]), request)[: len(TEXT) - 1]
    assert math.fsum(each.own for each in told) == pytest.approx(math.fsum(each.own for each in expected), abs=1e-3)


def test_one_token_is_allowed_and_behind_them_all_are() -> None:
    forced, row = ForcedTokens([0, 7, 8, 95]), np.empty(12, np.uint8)
    for token in (0, 7, 8, 95):
        forced.allow(row)
        assert np.flatnonzero(np.unpackbits(row, bitorder="little")).tolist() == [token]
        forced.advance(token)
    for token in (3, 90):
        forced.allow(row)
        assert row.tolist() == [0xFF] * 12
        forced.advance(token)
    assert not forced.problem


def test_another_token_is_the_engines_mistake() -> None:
    forced = ForcedTokens([5, 6])
    forced.advance(6)
    assert forced.is_ours
    assert "sampled 6 where only 5 was allowed" in forced.problem


@pytest.mark.parametrize("vocab_size", [32, 300, 511])
def test_texts_need_no_tokenizer_to_be_forced(tmp_path: Path, vocab_size: int) -> None:
    rows = GrammarCompiler(tmp_path / "nowhere", vocab_size, 1).allowed([ForcedTokens([31]), ForcedTokens([])])
    assert rows.shape == (2, 4 * math.ceil(vocab_size / 32))
    allowed = np.unpackbits(rows, axis=1, bitorder="little")
    assert np.flatnonzero(allowed[0]).tolist() == [31]
    assert allowed[1].all()


def test_a_greedy_text_is_what_the_model_itself_says(model_dir: Path) -> None:
    """Forced to say what it says anyway, it says the same behind it, and each token is its likeliest."""
    plain = a_request([5, 6, 7], new=12, logprobs=1)
    events = drain(core(model_dir), [plain])
    said = tokens_of(events)[plain.id]
    request = a_request([5, 6, 7], new=12, forced=said[:8], logprobs=1, sampling=GREEDY)
    again = drain(core(model_dir), [request])
    assert tokens_of(again)[request.id] == said
    for given, due in zip(reports_of(again, request), reports_of(events, plain), strict=True):
        require_equal(given, due)
