"""Calls of tools by whole engines: whatever a random model wants, they are calls, and greedy ones are transformers'."""

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.chat.tools.grammar import calling_grammar
from service.chat.tools.markup import CallMarks
from service.chat.tools.offer import Offer, Tool
from service.engine.base import FinishReason, GenerationRequest, SamplingParams
from tests.support.checkpoints import Shape
from tests.support.driving import drain, reasons_of, tokens_of
from tests.support.engines import GREEDY, a_request
from tests.support.speaking import CITY, VOCAB, Speaker, core, write_speaking_checkpoint

DRAWN = [SamplingParams(temperature=3.0, top_k=0, top_p=1.0, seed=seed) for seed in range(24)]
TOOLS = (
    Tool("build", "Build a city.", CITY),
    Tool("now", "", {"type": "object", "properties": {}, "additionalProperties": False}),
)


class Caller(Speaker):
    """Asks for calls, and reads them."""

    def __init__(self, model_dir: Path) -> None:
        super().__init__(model_dir)
        marks = CallMarks.of(self.tokenizer)
        assert marks is not None
        self.marks = marks

    def ask(self, offer: Offer, sampling: SamplingParams, schema: dict[str, Any] | None = None) -> GenerationRequest:
        return a_request(
            self.tokenizer.encode_text("Name a city."),
            new=300,
            stop=[*self.tokenizer.stop_ids, self.marks.end],
            sampling=sampling,
            grammar=calling_grammar(offer, self.marks, schema)[0],
        )

    def is_text(self, token: int) -> bool:
        codec = self.tokenizer.codec
        return token < len(codec.table) and token not in codec.byte_ids and bool(codec.table[token])

    def call_in(self, tokens: list[int]) -> Any:
        """The call that an answer is; None if it has none."""
        if self.marks.start not in tokens:
            return None
        assert (tokens[0], tokens[1], tokens[-1]) == self.marks
        call = json.loads(self.tokenizer.decode(tokens[2:-1]))
        schemas = {tool.name: tool.parameters for tool in TOOLS}
        jsonschema.validate(call["parameters"], schemas[call["name"]])
        return call


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_checkpoint(tmp_path_factory.mktemp("model"), Shape(vocab=VOCAB))


@pytest.fixture(scope="module")
def caller(model_dir: Path) -> Caller:
    return Caller(model_dir)


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_random_model_that_must_call_calls(model_dir: Path, caller: Caller, kind: str) -> None:
    requests = [caller.ask(Offer(TOOLS, demanded=True), sampling) for sampling in DRAWN]
    events = drain(core(model_dir, kind), requests)
    assert set(reasons_of(events).values()) == {FinishReason.STOP}
    names = {caller.call_in(tokens)["name"] for tokens in tokens_of(events).values()}
    assert names == {"build", "now"}, "each is wanted sometimes"


def test_one_that_may_answers_in_json_or_calls(model_dir: Path, caller: Caller) -> None:
    requests = [caller.ask(Offer(TOOLS), sampling, CITY) for sampling in DRAWN]
    events = drain(core(model_dir, "native"), requests)
    assert set(reasons_of(events).values()) == {FinishReason.STOP}
    calls = 0
    for tokens in tokens_of(events).values():
        if caller.call_in(tokens):
            calls += 1
        else:
            jsonschema.validate(json.loads(caller.text(tokens)), CITY)
    assert 0 < calls < len(requests)


def test_greedy_calls_equal_transformers(model_dir: Path, caller: Caller) -> None:
    offers = [Offer(TOOLS, demanded=True), Offer(TOOLS[:1], demanded=True), Offer(TOOLS)]
    requests = [caller.ask(offer, GREEDY) for offer in offers]
    expected = tokens_of(drain(core(model_dir, "reference"), requests))
    assert tokens_of(drain(core(model_dir, "native"), requests)) == expected


def test_text_before_a_call_is_what_the_model_says_without_tools(model_dir: Path, caller: Caller) -> None:
    """As far as it is text: a random model soon says half a character, or a token that means nothing."""
    offered = [caller.ask(Offer(TOOLS), sampling) for sampling in DRAWN]
    free = [caller.request("Name a city.", new=300, sampling=sampling) for sampling in DRAWN]
    events = tokens_of(drain(core(model_dir, "native"), [*offered, *free]))
    texts = 0
    for with_tools, without in zip(offered, free, strict=True):
        text = list(takewhile(caller.is_text, events[without.id]))
        assert events[with_tools.id][: len(text)] == text
        texts += len(text)
    assert texts > 5
