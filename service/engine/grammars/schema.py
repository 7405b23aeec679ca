"""JSON schemas as grammars, and what is wrong with one. The library is imported when the first one comes."""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLParserLimits

WHITESPACE = r"(\n[ \t]{0,40}| )?"
"""Between two tokens of JSON: a space, or a line's end and enough to indent by, and no more, or a model that has
nothing to say could go on with it to the answer's limit."""

ANY_OBJECT = {"type": "object"}
"""The schema of what has names and values, and nothing said of them."""

MAX_LEXER_STATES = 5000
"""Of 1 to 2 kB each: what the lexer of one answer may grow to. Ordinary schemas need some hundreds."""
_WHERE_IN_OURS = re.compile(r'^at \d+\(\d+\): invalid regex ".*" \(in regex\): ')
"""Where a pattern stands in a grammar that is not its client's, and all of it once more."""
MAX_SAID = 300
"""Characters of what the library says: it likes to quote."""


def json_grammar(schema: dict[str, Any]) -> str:
    """The grammar of the JSON documents that fit `schema`, which must be within `bounds`; see `problem_of`."""
    return json.dumps({"grammars": [{"json_schema": guided(schema)}]})


def guided(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, with what is not its own to say: the space between tokens."""
    return {**schema, "x-guidance": {"whitespace_pattern": WHITESPACE}}


def problem_of(grammar: str) -> str:
    """What is wrong with a grammar, in the library's words; "" for one that can be kept to. Takes milliseconds."""
    from llguidance import LLMatcher

    return first_words(LLMatcher.validate_grammar(grammar, None, limits=limits()))


def limits() -> "LLParserLimits":
    """Bounds of time and memory for each grammar, the library's own but for its memory."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def first_words(error: str) -> str:
    """An error of the library in one line; a regular expression's is about its last one, or the one that says so."""
    lines = [line.strip() for line in _WHERE_IN_OURS.sub("", error).splitlines() if line.strip()]
    is_of_regex = len(lines) > 1 and lines[0].endswith(":")
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:]
    said = f"{lines[0]} {reasons[0]}" if is_of_regex else lines[0] if lines else ""
    return said if len(said) <= MAX_SAID else f"{said[:MAX_SAID]}…"
