"""Answers in JSON beside free ones, in the same run: what a grammar costs its own answer, and its neighbours."""

from dataclasses import replace

import msgspec

from service.engine.base import GenerationRequest
from service.engine.grammars.schema import json_grammar
from tests.bench.load import serve
from tests.bench.measures import ENGINE
from tests.bench.run import Run
from tests.bench.sections.others import tokens_per_second
from tests.bench.sections.requests import concurrent

FREE = "free"
ENDLESS = json_grammar({"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 100_000})
"""JSON that no answer's limit lets come to its end, whatever a model of random weights wants to say."""


def structured(run: Run) -> None:
    """Many requests at once of which one is in JSON, then all; the first grammar, which loads the tokenizer, before."""
    count = run.scale.streams
    free = run.table.figure(tokens_per_second(count), ENGINE)
    serve(run.core, in_json(concurrent(run, 1)))
    for kept in (1, count):
        requests = concurrent(run, count)
        rates = serve(run.core, [*in_json(requests[:kept]), *requests[kept:]])
        measure = replace(tokens_per_second(count), name=f"tokens_per_second_with_{kept}_in_json")
        run.table.put(measure, FREE, free)
        run.beside(measure, ENGINE, rates.tokens_per_second)


def in_json(requests: list[GenerationRequest]) -> list[GenerationRequest]:
    """The same requests, each to be answered in JSON of the same number of tokens."""
    return [msgspec.structs.replace(request, grammar=ENDLESS) for request in requests]
