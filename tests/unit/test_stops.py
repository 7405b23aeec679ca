"""Stop strings: the cut is right, nothing of a stop string escapes, and chunk borders change nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.chat.stops import StopMatcher


def run(stops: list[str], chunks: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(chunk) for chunk in chunks)
    return text + matcher.flush(), matcher.stopped


def expected(stops: list[str], text: str) -> tuple[str, str | None]:
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        ([], "anything", "anything", None),
        (["END"], "no such thing", "no such thing", None),
        (["END"], "one END two", "one ", "END"),
        (["END"], "END", "", "END"),
        (["END"], "EN", "EN", None),
        (["END"], "EEND", "E", "END"),
        (["aab"], "aaab", "a", "aab"),
        (["abab", "b"], "abab", "", "abab"),
        (["abab", "b"], "abac", "a", "b"),
        (["ab", "abc"], "xabc", "x", "ab"),
        (["abc", "ab"], "xabc", "x", "ab"),
        # The inner one is complete first, but the outer one begins before it.
        (["bcd", "abcde"], "xabcde", "x", "abcde"),
        (["bcd", "abcde"], "xabcdX", "xa", "bcd"),
        (["bcd", "abcde"], "xabcd", "xa", "bcd"),
        (["\n\n", "用户："], "好的\n用户：再见", "好的\n", "用户："),
        (["😀😀"], "😀a😀😀", "😀a", "😀😀"),
        (["]", "^", "-", "\\"], "a-b", "a", "-"),
    ],
)
def test_text_is_cut_at_the_earliest_stop_string(stops: list[str], text: str, shown: str, stopped: str | None) -> None:
    assert run(stops, [text]) == (shown, stopped)
    assert run(stops, list(text)) == (shown, stopped)


@settings(deadline=None)
@given(
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=4),
    chunks=st.lists(st.text("abcd", max_size=8), max_size=8),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut_into_chunks(stops: list[str], chunks: list[str]) -> None:
    assert run(stops, chunks) == expected(stops, "".join(chunks))


@settings(deadline=None)
@given(stops=st.lists(st.text(min_size=1, max_size=6), max_size=4), data=st.data())
def test_any_characters_may_make_up_a_stop_string(stops: list[str], data: st.DataObject) -> None:
    part = st.text(max_size=4) | st.sampled_from(stops) if stops else st.text(max_size=4)
    chunks = data.draw(st.lists(part, max_size=10))
    assert run(stops, chunks) == expected(stops, "".join(chunks))


@settings(deadline=None)
@given(stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3), text=st.text("abc", max_size=20))
def test_only_what_may_still_become_a_stop_string_is_held_back(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(character) for character in text)
    if matcher.stopped is None and not any(stop in text for stop in stops):
        held = text[len(shown) :]
        candidates = {text[-size:] for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])}
        assert held == max(candidates, key=len, default="")


def test_text_is_shown_as_soon_as_it_cannot_be_a_stop_string() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.push("hello <|") == "hello "
    assert matcher.push("en") == ""
    assert matcher.push("ter") == "<|enter"
    assert matcher.push("<|end") == ""
    assert matcher.flush() == "<|end"
    assert matcher.stopped is None


def test_what_follows_a_stop_string_is_dropped() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("One. Two.") == "One"
    assert matcher.stopped == "."
    assert matcher.push(" Three") == ""
    assert matcher.flush() == ""
    assert matcher.stopped == "."


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher(["a", ""])


def test_a_stop_string_of_a_thousand_characters_is_found_in_a_long_text() -> None:
    stop = "ab" * 499 + "ac"
    text = "ab" * 20_000 + "ac tail"
    shown, stopped = run([stop], [text[at : at + 7] for at in range(0, len(text), 7)])
    assert (shown, stopped) == (text[: text.find(stop)], stop)
