"""Which texts a pattern's grammar has, and what becomes of patterns that cost much."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from service.engine.grammars.matcher import Masks, TokenMatcher
from service.engine.grammars.schema import problem_of
from service.engine.grammars.texts import MAX_PARTS, one_of, parts_of, pattern_grammar

BYTES = LLTokenizer("byte")


def has(pattern: str, text: str) -> bool:
    """Whether an answer may be `text` and end there."""
    matcher = TokenMatcher(BYTES, pattern_grammar(pattern))
    assert not matcher.problem
    tokens = list(text.encode())
    return matcher.native.try_consume_tokens(tokens) == len(tokens) and bool(matcher.native.is_accepting())


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [
        (r"\d{4}-\d\d", "2026-11", "2026-11-29"),
        (r"^yes$", "yes", "^yes$"),
        (r"^yes$|^no$", "no", "yesno"),
        (r"(?i)yes|no", "YES", "y"),
        (r"a/b", "a/b", "a"),
        (r"a\\/b", r"a\/b", "a/b"),
        ("a\nb", "a\nb", "a b"),
        (r"//", "//", "/"),
        (r".", "é", "\n"),
        (r"\p{Han}+", "你好", "ni"),
        (r"(a|ab)c?", "abc", "abcc"),
    ],
)
def test_a_text_fits_from_end_to_end(pattern: str, text: str, other: str) -> None:
    assert has(pattern, text)
    assert not has(pattern, other)


@given(st.lists(st.text("aZ0 é你😀\n\t\"'\\/|()[]{}<>^$.*+?#%&~-_\x7f\u2028", min_size=1, max_size=5), min_size=1))
@settings(deadline=None, max_examples=60)
def test_one_of_a_few_is_each_of_them_and_no_other(texts: list[str]) -> None:
    """Whatever signs they have: none means anything to a pattern."""
    pattern = one_of(texts)
    assert all(has(pattern, text) for text in texts)
    assert all(has(pattern, longer) == (longer in texts) for longer in (text + "a" for text in texts))
    assert all(has(pattern, shorter) == (shorter in texts) for shorter in (text[:-1] for text in texts))


@pytest.mark.parametrize(
    ("pattern", "word"), [("[", "unclosed"), ("(?=x)y", "look-ahead"), (r"\bx", "lookarounds"), ("(", "unclosed group")]
)
def test_what_is_no_pattern_is_named_in_one_line(pattern: str, word: str) -> None:
    problem = problem_of(pattern_grammar(pattern))
    assert word in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("pattern", "parts"),
    [
        ("", 0),
        ("abc", 3),
        (r"a\{2}", 4),  # the brace is a character
        (r"\p{Han}{2}\d{3}", 5),
        (r"[a\]{9}]{3}", 3),
        ("(ab{2,3}){4}", 16),
        ("(a|bc)*d?{3}", 6),
        ("x{5,}y{0}", 6),
        (r"(a{1000}){1000}", 1_000_000),
        ("(" * 100 + "a" + "){9}" * 100, 9**100),
        (")a{2", 4),
    ],
)
def test_counts_are_written_out(pattern: str, parts: int) -> None:
    assert parts_of(pattern) == parts


GIVEN_UP = [
    r"((((((a{1000}){1000}){1000}){1000}){1000}){1000})",
    "(" * 100 + "a" + "){9}" * 100,
    "(.?){1000}" * 50,
]
"""By the library's bounds of work, or by ours of time. Of a client they are refused before."""
KEPT_TO = [
    "((x*)*y?)*" * 50,
    r"(a|b)*a(a|b){400}",
    "(" + "|".join("." * n + "a.*" for n in range(20)) + ")*",
    "|".join(f"choice {n}" for n in range(1500)),
]


def say(pattern: str) -> tuple[str, str]:
    """Up to 100 bytes of an answer, the first of those that may follow each time; and what became a problem."""
    masks = Masks(BYTES.vocab_size, 1)
    matcher = TokenMatcher(BYTES, pattern_grammar(pattern))
    masks.begin(matcher)
    said = ""
    while not matcher.problem and len(said) < 100:
        (row,) = masks.allowed([matcher])
        following = [byte for byte in b"abchoiexy 1" if row[byte // 8] >> byte % 8 & 1]
        if matcher.problem or not following:
            break
        matcher.advance(following[0])
        said += chr(following[0])
    return said, matcher.problem


@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_a_pattern_that_takes_too_long_is_given_up_with_a_sentence(pattern: str) -> None:
    """Its client is told, and nobody waits for it."""
    assert parts_of(pattern) > MAX_PARTS
    _, problem = say(pattern)
    assert problem.startswith("the answer's grammar cannot be kept to: ")


@pytest.mark.parametrize("pattern", KEPT_TO)
def test_a_pattern_that_only_looks_so_is_kept_to(pattern: str) -> None:
    said, problem = say(pattern)
    assert not problem
    assert parts_of(pattern) < MAX_PARTS
    assert len(said) == 100 or said in pattern.split("|")
