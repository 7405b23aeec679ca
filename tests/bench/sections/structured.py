"""Answers in JSON, and such as may call tools, beside free ones, in the same run: what a grammar costs its own answer,
and its neighbours."""

from dataclasses import replace

import msgspec

from service.chat.tools.grammar import calling_grammar
from service.chat.tools.markup import CallMarks
from service.chat.tools.offer import Offer, Tool
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
MARKS = CallMarks(1, 3, 4)
"""Special tokens of the benchmark's tokenizer; nobody reads its answers."""
PLACE = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = Offer(tuple(Tool(f"tool_{number}", "", PLACE) for number in range(20)))


def structured(run: Run) -> None:
    """Many requests at once of which one is in JSON, then all, and then all that may call tools, which is text but for
    accidents; the first grammar, which loads the tokenizer, before."""
    count = run.scale.streams
    free = run.table.figure(tokens_per_second(count), ENGINE)
    serve(run.core, keeping(ENDLESS, concurrent(run, 1)))
    mixes = [
        (1, "in_json", ENDLESS),
        (count, "in_json", ENDLESS),
        (count, "offered_tools", calling_grammar(TOOLS, MARKS, None)[0]),
    ]
    for kept, name, grammar in mixes:
        requests = concurrent(run, count)
        rates = serve(run.core, [*keeping(grammar, requests[:kept]), *requests[kept:]])
        measure = replace(tokens_per_second(count), name=f"tokens_per_second_with_{kept}_{name}")
        run.table.put(measure, FREE, free)
        run.beside(measure, ENGINE, rates.tokens_per_second)


def keeping(grammar: str, requests: list[GenerationRequest]) -> list[GenerationRequest]:
    """The same requests, each to be answered in `grammar` with the same number of tokens."""
    return [msgspec.structs.replace(request, grammar=grammar) for request in requests]
