"""Answers in which a tool may be called, as a grammar: whatever the model wants, a call has a tool's name and
arguments that fit its schema.

Source of the syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.chat.printable import CONTROL
from service.chat.tools.markup import TAIL, CallMarks, head
from service.chat.tools.offer import Offer, Tool
from service.engine.grammars.bounds import excess
from service.engine.grammars.closing import held_to, without_unkept
from service.engine.grammars.schema import ANY_OBJECT, guided, json_grammar, problem_of
from service.errors import InvalidRequest

TEXT = rf"/[^{CONTROL}]+/"
"""All that a client may send back."""
SPACE = r"/[ \n]{0,4}/"
"""Between the marks and the call, where the model was taught a line's end, and its tokenizer may put a space."""

NO_OBJECT = "their type is not object"
TOO_DEEP = "they are nested too deeply"

Schemas = dict[str, dict[str, Any]]
"""What each tool's calls are made to fit, by its name."""


def calling_grammar(offer: Offer, marks: CallMarks, schema: dict[str, Any] | None) -> tuple[str, int]:
    """The grammar of the answers that `offer` leaves, of which those that call nothing fit `schema`, if there is one;
    and how many tools it lets be called with any object, since their schemas cannot be kept to, or not beside those of
    others. That is done to none that is `strict`, and otherwise to the last ones: a client seldom wrote the schemas of
    its tools. Takes milliseconds, and some tenths of a second where very many schemas are found too much.

    Raises InvalidRequest for a strict tool whose schema cannot be kept to.
    """
    answers = _Answers(offer, marks, schema)
    wanted = {tool.name: held_to(ANY_OBJECT | tool.parameters) for tool in offer.tools}
    schemas = {name: each for name, each in wanted.items() if each is not None}
    if len(schemas) < len(wanted) or answers.problem(schemas):
        schemas = _as_far_as_possible(answers, wanted)
    lax = sum(schemas[name] == ANY_OBJECT != each for name, each in wanted.items())
    return answers.grammar(schemas), lax


@dataclass(frozen=True, slots=True)
class _Answers:
    """Those that are left, but for what the tools' calls are made to fit."""

    offer: Offer
    marks: CallMarks
    schema: dict[str, Any] | None

    def problem(self, schemas: Schemas) -> str:
        """Why all `schemas` cannot be kept to together; "" if they can."""
        if any(each["type"] != "object" for each in schemas.values()):
            return NO_OBJECT
        return excess({"properties": schemas}) or problem_of(self.grammar(schemas))

    def grammar(self, schemas: Schemas) -> str:
        """In Lark's syntax: a special token is written by its id, <[7]>."""
        calls = " | ".join(f"{json.dumps(head(each))} {_json(schemas[each])} {json.dumps(TAIL)}" for each in schemas)
        rules = [
            f"start: {self._start()}",
            f"call: <[{self.marks.start}]> <[{self.marks.plugin}]> SPACE ({calls}) <[{self.marks.end}]>",
            f"TEXT: {TEXT}",
            f"SPACE: {SPACE}",
        ]
        return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}]})

    def _start(self) -> str:
        if self.offer.demanded:
            return "call"
        return "TEXT? | TEXT? call" if self.schema is None else f"{_json(self.schema)} | call"


def _as_far_as_possible(answers: _Answers, wanted: Mapping[str, dict[str, Any] | None]) -> Schemas:
    """What calls are made to fit where not all can be kept to: strict tools' schemas first. Raises InvalidRequest as
    `calling_grammar`."""
    tools = answers.offer.tools
    alone = {tool.name: _kept(tool, wanted[tool.name]) for tool in tools}
    order = [tool.name for tool in sorted(tools, key=lambda tool: not tool.strict)]

    def of_first(count: int) -> Schemas:
        kept = set(order[:count])
        return {name: each if name in kept else ANY_OBJECT for name, each in alone.items()}

    most = bisect_left(range(len(order)), True, key=lambda count: bool(answers.problem(of_first(count + 1))))
    for tool in tools:
        if tool.strict and tool.name in order[most:]:
            raise InvalidRequest(
                f"the parameters of {tool.name} cannot be kept to beside those of other strict tools: "
                f"{answers.problem(of_first(most + 1))}. Offer fewer, or leave out strict",
                field=tool.field,
            )
    return of_first(most)


def _kept(tool: Tool, wanted: dict[str, Any] | None) -> dict[str, Any]:
    """What a call of `tool` is made to fit, if there is no other: of one that is not strict, as much as can be. Raises
    InvalidRequest as `calling_grammar`."""
    problem = TOO_DEEP if wanted is None else _problem_alone(wanted)
    if wanted is not None and not problem:
        return wanted
    if wanted is not None and not tool.strict and not _problem_alone(less := without_unkept(wanted)):
        return less
    if tool.strict:
        raise InvalidRequest(
            f"the parameters of {tool.name} cannot be kept to: {problem}. Leave out strict, and it is called with "
            "any object",
            field=tool.field,
        )
    return ANY_OBJECT


def _problem_alone(schema: dict[str, Any]) -> str:
    return NO_OBJECT if schema["type"] != "object" else excess(schema) or problem_of(json_grammar(schema))


def _json(schema: dict[str, Any]) -> str:
    return f"%json {json.dumps(guided(schema))}"
