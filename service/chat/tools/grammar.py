"""Answers in which a tool may be called, as a grammar: whatever the model wants, a call has a tool's name and
arguments that fit its schema.

Source of the syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from bisect import bisect_left
from typing import Any

from service.chat.printable import CONTROL
from service.chat.tools.markup import TAIL, CallMarks, head
from service.chat.tools.offer import Offer, Tool
from service.chat.tools.parameters import held_to
from service.engine.grammars.bounds import excess
from service.engine.grammars.schema import ANY_OBJECT, guided, json_grammar, problem_of
from service.errors import InvalidRequest

TEXT = rf"/[^{CONTROL}]+/"
"""All that a client may send back."""
SPACE = r"/[ \n]{0,4}/"
"""Between the marks and the call, where the model was taught a line's end, and its tokenizer may put a space."""

Schemas = dict[str, dict[str, Any]]
"""What each tool's calls are made to fit, by its name."""


def calling_grammar(offer: Offer, marks: CallMarks, schema: dict[str, Any] | None) -> tuple[str, int]:
    """The grammar of the answers that `offer` leaves, of which those that call nothing fit `schema`, if there is one;
    and how many tools it lets be called with any object, since their schemas cannot be kept to, or not beside those of
    others. That is done to none that is `strict`, and otherwise to the last ones: a client seldom wrote the schemas of
    its tools. Takes milliseconds, and some tenths of a second where very many schemas are found too much.

    Raises InvalidRequest for a strict tool whose schema cannot be kept to.
    """
    schemas = {tool.name: each for tool in offer.tools if (each := _wanted(tool)) is not None}
    if len(schemas) == len(offer.tools) and not _problem(offer, marks, schemas, schema):
        return _written(offer, marks, schemas, schema), 0
    return _as_far_as_possible(offer, marks, schema)


def _as_far_as_possible(offer: Offer, marks: CallMarks, schema: dict[str, Any] | None) -> tuple[str, int]:
    alone = {tool.name: _kept(tool, at) for at, tool in enumerate(offer.tools)}
    order = [tool.name for tool in sorted(offer.tools, key=lambda tool: not tool.strict)]

    def of_first(count: int) -> Schemas:
        kept = set(order[:count])
        return {name: each if name in kept else ANY_OBJECT for name, each in alone.items()}

    most = bisect_left(range(len(order)), True, key=lambda n: bool(_problem(offer, marks, of_first(n + 1), schema)))
    for at, tool in enumerate(offer.tools):
        if tool.strict and tool.name in order[most:]:
            problem = _problem(offer, marks, of_first(most + 1), schema)
            raise InvalidRequest(
                f"the parameters of {tool.name} cannot be kept to beside those of other strict tools: {problem}. "
                "Offer fewer, or leave out strict",
                field=f"tools.{at}.function.parameters",
            )
    schemas = of_first(most)
    lax = sum(schemas[tool.name] == ANY_OBJECT != _wanted(tool) for tool in offer.tools)
    return _written(offer, marks, schemas, schema), lax


def _wanted(tool: Tool) -> dict[str, Any] | None:
    """What its calls are to fit; None for what is nested too deeply."""
    return held_to(ANY_OBJECT | tool.parameters)


def _kept(tool: Tool, at: int) -> dict[str, Any]:
    """What a call of `tool` is made to fit, if there is no other. Raises InvalidRequest as `calling_grammar`."""
    schema = _wanted(tool)
    problem = _problem_alone(schema)
    if schema is not None and not problem:
        return schema
    if tool.strict:
        raise InvalidRequest(
            f"the parameters of {tool.name} cannot be kept to: {problem}. Leave out strict, and it is called with "
            "any object",
            field=f"tools.{at}.function.parameters",
        )
    return ANY_OBJECT


def _problem_alone(schema: dict[str, Any] | None) -> str:
    if schema is None:
        return "they are nested too deeply"
    if schema["type"] != "object":
        return "their type is not object"
    return excess(schema) or problem_of(json_grammar(schema))


def _problem(offer: Offer, marks: CallMarks, schemas: Schemas, schema: dict[str, Any] | None) -> str:
    """Of all together."""
    if any(each["type"] != "object" for each in schemas.values()):
        return "a type is not object"
    return excess({"properties": schemas}) or problem_of(_written(offer, marks, schemas, schema))


def _written(offer: Offer, marks: CallMarks, schemas: Schemas, schema: dict[str, Any] | None) -> str:
    """In Lark's syntax: a special token is written by its id, <[7]>."""
    calls = " | ".join(f"{json.dumps(head(name))} {_json(each)} {json.dumps(TAIL)}" for name, each in schemas.items())
    answers = "call" if offer.demanded else f"{_json(schema)} | call" if schema is not None else "TEXT? | TEXT? call"
    rules = [
        f"start: {answers}",
        f"call: <[{marks.start}]> <[{marks.plugin}]> SPACE ({calls}) <[{marks.end}]>",
        f"TEXT: {TEXT}",
        f"SPACE: {SPACE}",
    ]
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}]})


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(guided(schema))}"
