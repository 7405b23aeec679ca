"""Answers in which a tool may be called, as a grammar: whatever the model wants, a call has a tool's name and
arguments that fit its schema.

Source of the syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from bisect import bisect_left
from typing import Any

from service.chat.tools.markup import TAIL, CallMarks, head
from service.chat.tools.offer import Offer, Tool
from service.chat.tools.parameters import held_to
from service.engine.grammars.bounds import excess
from service.engine.grammars.schema import ANY_OBJECT, guided, json_grammar, problem_of
from service.errors import InvalidRequest

TEXT = r"/[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f]+/"
"""All that a client may send back (see `api.fields.Text`)."""
SPACE = r"/[ \n]{0,4}/"
"""Between the marks and the call, where the model was taught a line's end, and its tokenizer may put a space."""


def calling_grammar(offer: Offer, marks: CallMarks, schema: dict[str, Any] | None) -> str:
    """The grammar of the answers that `offer` leaves; those that call nothing fit `schema`, if there is one.

    A tool that is not `strict` is called with any object if its schema cannot be kept to, or not beside those of the
    tools before it: a client seldom wrote the schemas of its tools. Takes some milliseconds. Raises InvalidRequest for
    a strict one that would be, and for a `schema` that cannot be kept to.
    """
    schemas = [_kept(tool, at) for at, tool in enumerate(offer.tools)]

    def of_first(count: int) -> dict[str, dict[str, Any]]:
        """What the tools are called with, where no more than so many schemas are kept to."""
        return {tool.name: schemas[at] if at < count else ANY_OBJECT for at, tool in enumerate(offer.tools)}

    def problem(count: int) -> str:
        kept = of_first(count)
        return excess({"properties": kept}) or problem_of(_written(offer, marks, kept, schema))

    most = bisect_left(range(len(schemas)), True, key=lambda count: bool(problem(count + 1)))
    for at, tool in enumerate(offer.tools):
        if at >= most and tool.strict:
            raise InvalidRequest(
                f"the parameters of {tool.name} cannot be kept to beside those before it: {problem(len(schemas))}. "
                "Offer fewer tools, or leave out strict",
                field=f"tools.{at}.function.parameters",
            )
    return _written(offer, marks, of_first(most), schema)


def _kept(tool: Tool, at: int) -> dict[str, Any]:
    """What a call of `tool` is made to fit. Raises InvalidRequest as `calling_grammar`."""
    schema = held_to(ANY_OBJECT | tool.parameters)
    problem = _problem_of(schema)
    if schema is not None and not problem:
        return schema
    if tool.strict:
        raise InvalidRequest(
            f"the parameters of {tool.name} cannot be kept to: {problem}. Leave out strict, and it is called with "
            "any object",
            field=f"tools.{at}.function.parameters",
        )
    return ANY_OBJECT


def _problem_of(schema: dict[str, Any] | None) -> str:
    if schema is None:
        return "they are nested too deeply"
    if schema["type"] != "object":
        return "their type is not object"
    return excess(schema) or problem_of(json_grammar(schema))


def _written(offer: Offer, marks: CallMarks, kept: dict[str, dict[str, Any]], schema: dict[str, Any] | None) -> str:
    """In Lark's syntax: a special token is written by its id, <[7]>."""
    calls = " | ".join(f"{json.dumps(head(name))} {_json(each)} {json.dumps(TAIL)}" for name, each in kept.items())
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
