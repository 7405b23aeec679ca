"""Texts as grammars: those that a regular expression matches, which may be one of a few. The library is imported when
the first one comes."""

import re
from collections.abc import Iterable

MAX_PARTS = 20_000
"""Of a pattern: as many as a text in JSON may have characters. Counts within counts make millions of them, on which the
library works for a second before it gives up."""
_PART = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
"""A count, or what may have one behind it: a class, a character, or the end of a group."""


def pattern_grammar(pattern: str) -> str:
    """The grammar of the texts that `pattern`, a regular expression in Rust's syntax, matches from end to end; see
    `schema.problem_of`. Source: https://docs.rs/regex/latest/regex/#syntax"""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def one_of(texts: Iterable[str]) -> str:
    """The pattern that matches each of these and no other."""
    return "|".join(map(_literal, texts))


def parts_of(pattern: str) -> int:
    """About how many characters and classes a pattern has with all counts written out, the most of each: 16 in
    (ab{2,3}){4}. What is no pattern has some number, too."""
    groups, last = [0], 0
    for found in _PART.finditer(pattern):
        least, most = found.groups()
        if found[0] == "(":
            groups.append(0)
        elif found[0] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif least:
            times = max(int(most or least), 1)
            groups[-1] += last * (times - 1)
            last *= times
        elif found[0] not in "|*+?^$":
            groups[-1] += 1
            last = 1
    return sum(groups)


def _literal(text: str) -> str:
    """By numbers, but for what means itself wherever it stands: some signs would mean more to the library's own syntax,
    into which a pattern is written."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)
