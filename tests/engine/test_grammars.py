"""Answers of whole engines keep to their grammars, and greedy ones are transformers' own."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.engine.base import Finish, FinishReason, GenerationRequest, SamplingParams
from service.engine.fake import FakeCore
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.driving import drain, reasons_of, tokens_of
from tests.support.engines import a_request, fake_config
from tests.support.speaking import CITY, VOCAB, Speaker, core, write_speaking_checkpoint

PROMPTS = ["Name a city.", "你好，世界", "x", "The quick brown fox jumps over the lazy dog." * 3]
SAMPLED = [
    SamplingParams(seed=1),
    SamplingParams(temperature=3.0, top_k=0, top_p=1.0, seed=2),
    SamplingParams(temperature=1.5, top_k=200, top_p=0.9, repetition_penalty=1.3, seed=3),
    SamplingParams(top_k=0, top_p=0.7, seed=4),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_checkpoint(tmp_path_factory.mktemp("model"), Shape(vocab=VOCAB))


@pytest.fixture(scope="module")
def speaker(model_dir: Path) -> Speaker:
    return Speaker(model_dir)


def require_cities(speaker: Speaker, events: list[Any], requests: list[GenerationRequest]) -> None:
    assert set(reasons_of(events).values()) == {FinishReason.STOP}
    for request in requests:
        tokens = tokens_of(events)[request.id]
        assert tokens[-1] in speaker.tokenizer.stop_ids
        jsonschema.validate(json.loads(speaker.text(tokens)), CITY)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_random_model_says_nothing_but_what_fits(model_dir: Path, speaker: Speaker, kind: str) -> None:
    requests = [speaker.request(p, CITY, sampling=s) for p, s in zip(PROMPTS, SAMPLED, strict=True)]
    require_cities(speaker, drain(core(model_dir, kind), requests), requests)


def test_greedy_tokens_of_a_grammar_equal_transformers(model_dir: Path, speaker: Speaker) -> None:
    penalized = SamplingParams(temperature=0.0, repetition_penalty=1.2)
    requests = [speaker.request(p, CITY) for p in PROMPTS] + [speaker.request(PROMPTS[0], CITY, sampling=penalized)]
    expected = drain(core(model_dir, "reference"), requests)
    require_cities(speaker, expected, requests)
    for step_tokens in (16, 512):
        assert tokens_of(drain(core(model_dir, step_tokens=step_tokens), requests)) == tokens_of(expected)


def test_who_has_no_grammar_gets_the_same_beside_those_who_have(model_dir: Path, speaker: Speaker) -> None:
    free = [speaker.request(p, new=40, sampling=s) for p, s in zip(PROMPTS, SAMPLED, strict=True)]
    kept = [speaker.request(p, CITY, sampling=s) for p, s in zip(PROMPTS, SAMPLED, strict=True)]
    alone = tokens_of(drain(core(model_dir), free))
    events = drain(core(model_dir, max_running=8), [*kept, *free])
    assert {each.id: tokens_of(events)[each.id] for each in free} == alone
    require_cities(speaker, [event for event in events if event.id not in alone], kept)


def test_an_answer_that_is_cut_is_the_beginning_of_one_that_fits(model_dir: Path, speaker: Speaker) -> None:
    whole, cut = speaker.request(PROMPTS[0], CITY), speaker.request(PROMPTS[0], CITY, new=5)
    events = drain(core(model_dir), [whole, cut])
    assert reasons_of(events)[cut.id] is FinishReason.LENGTH
    assert tokens_of(events)[cut.id] == tokens_of(events)[whole.id][:5]


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_grammar_that_is_none_is_refused_and_the_engine_goes_on(model_dir: Path, speaker: Speaker, kind: str) -> None:
    bad = speaker.request("x", {"type": "strin"})
    good = speaker.request("x", CITY)
    events = drain(core(model_dir, kind), [bad, good])
    (refused,) = [event for event in events if event.id == bad.id]
    assert isinstance(refused, Finish)
    assert (refused.reason, refused.of_grammar) == (FinishReason.REJECTED, True)
    assert "strin" in refused.message
    require_cities(speaker, [event for event in events if event.id == good.id], [good])


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_masks_that_take_long_are_nobody_elses_to_look_at(model_dir: Path, speaker: Speaker, kind: str) -> None:
    """transformers works them out on a thread of its own, beside the one that hands out tokens."""
    long = {"type": "array", "items": {"const": "▁x" * 250}, "minItems": 1, "maxItems": 1}
    request = speaker.request("x", long, new=200)
    assert set(reasons_of(drain(core(model_dir, kind), [request])).values()) == {FinishReason.LENGTH}


class BreaksDown:
    """A matcher that fails after so many tokens, as one does whose grammar grows too complex."""

    def __init__(self, matcher: Any, after: int) -> None:
        self.native = matcher.native
        self.look = matcher.look
        self._matcher = matcher
        self._left = after

    is_ours = False

    @property
    def problem(self) -> str:
        return "" if self._left > 0 else "the answer's grammar cannot be kept to: too complex"

    def advance(self, token: int) -> None:
        self._left -= 1
        self._matcher.advance(token)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_grammar_that_fails_half_way_ends_its_answer_alone(
    model_dir: Path, speaker: Speaker, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.engine.grammars import matcher

    made = matcher.TokenMatcher
    monkeypatch.setattr(matcher, "TokenMatcher", lambda *given: BreaksDown(made(*given), 4))
    engine = core(model_dir, kind)
    kept = speaker.request("x", CITY)
    free = speaker.request("x", new=20)
    events = drain(engine, [kept, free])
    (finish,) = [event for event in events if event.id == kept.id and isinstance(event, Finish)]
    assert (finish.reason, finish.of_grammar) == (FinishReason.REJECTED, True)
    assert "too complex" in finish.message
    assert 3 <= len(tokens_of(events)[kept.id]) <= 5
    assert reasons_of(events)[free.id] in (FinishReason.LENGTH, FinishReason.STOP)
    monkeypatch.undo()
    again = speaker.request("x", CITY)
    require_cities(speaker, drain(engine, [again]), [again])


def test_a_checkpoint_without_a_tokenizer_serves_what_needs_none(tmp_path: Path, speaker: Speaker) -> None:
    engine = core(write_checkpoint(tmp_path, Shape(vocab=VOCAB)))
    kept = speaker.request("x", CITY)
    free = a_request([5], new=3)
    events = drain(engine, [kept, free])
    assert reasons_of(events) == {kept.id: FinishReason.ERROR, free.id: FinishReason.LENGTH}
    assert [event for event in events if event.id == kept.id and "tokenizer" in getattr(event, "message", "")]


def test_the_fake_engine_says_that_it_only_echoes(speaker: Speaker) -> None:
    (refused,) = FakeCore(fake_config()).add(speaker.request("x", CITY))
    assert isinstance(refused, Finish)
    assert refused.reason is FinishReason.REJECTED
    assert "echo" in refused.message
