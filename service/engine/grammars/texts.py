"""Texts as grammars: those that a regular expression matches, which may be one of a few. The library is imported when
the first one comes."""

from collections.abc import Iterable


def pattern_grammar(pattern: str) -> str:
    """The grammar of the texts that `pattern`, a regular expression in Rust's syntax, matches from end to end; see
    `schema.problem_of`. Source: https://docs.rs/regex/latest/regex/#syntax"""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def one_of(texts: Iterable[str]) -> str:
    """The pattern that matches each of these and no other."""
    return "|".join(map(_literal, texts))


def _literal(text: str) -> str:
    """By numbers, but for what means itself wherever it stands: some signs would mean more to the library's own syntax,
    into which a pattern is written."""
    return "".join(each if each.isascii() and each.isalnum() else f"\\x{{{ord(each):x}}}" for each in text)
