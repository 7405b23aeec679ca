"""Answers with calls, from tokens to pieces: nothing of a call is text, and its arguments come as soon as they can."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.chat.logprobs import Reporter, Spelling
from service.chat.pieces import CallDelta, Delta, Done, TextDelta
from service.chat.reading import AnswerReader
from service.chat.stopwatch import Counts
from service.chat.tools import markup
from service.chat.tools.markup import CallMarks
from service.chat.tools.reading import CallReader
from service.engine.base import Finish, FinishReason, Logprobs, Token
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import write_sentencepiece_dir

COUNTS = Counts(1, 0, 1)
objects = st.dictionaries(
    st.text('a"\\}你', max_size=3),
    st.recursive(st.none() | st.integers() | st.text('}{"\\,: 你', max_size=5), st.lists),
)


@given(arguments=objects, cuts=st.lists(st.integers(0, 60), max_size=8), space=st.sampled_from(["", "\n", " \n"]))
def test_a_call_is_read_the_same_however_it_is_cut(arguments: dict[str, Any], cuts: list[int], space: str) -> None:
    text = space + markup.call("get_weather", arguments)
    reader = CallReader()
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    said = "".join(reader.push(text[a:b]) for a, b in itertools.pairwise(bounds))
    assert reader.name == "get_weather"
    assert reader.cut() == ""
    assert said == json.dumps(arguments, ensure_ascii=False)


@given(arguments=objects.filter(bool), left=st.integers(1, 200))
def test_a_call_that_is_cut_has_what_came(arguments: dict[str, Any], left: int) -> None:
    text = markup.call("f", arguments)[:-1]
    cut = text[: -min(left, len(text))]
    reader = CallReader()
    said = reader.push(cut) + reader.cut()
    head = markup.head("f")
    assert said == (cut.removeprefix(head) if cut.startswith(head) else "")
    assert bool(reader.name) == cut.startswith(head)


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader()
    assert [reader.push(each) for each in ('{"name": "f", "para', 'meters": ', '{"a"', ": 1", "}", "}")] == [
        "",
        "",
        '{"a',
        '": ',
        "1",
        "}",
    ]
    assert reader.cut() == ""


def test_a_head_among_the_arguments_is_no_head() -> None:
    reader = CallReader()
    inner = markup.call("g", {})
    assert reader.push(markup.head("f")) + reader.push(inner) + reader.push("}") == inner
    assert reader.name == "f"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_sentencepiece_dir(tmp_path_factory.mktemp("sp")))


class Reading:
    """Reads a text with its special tokens as an answer."""

    def __init__(self, tokenizer: Tokenizer, *stops: str) -> None:
        self._tokenizer = tokenizer
        marks = CallMarks.of(tokenizer)
        assert marks is not None
        self.answer = AnswerReader(tokenizer, list(stops), Reporter(Spelling(tokenizer)), [marks.end], marks)

    def push(self, text: str) -> list[Delta]:
        deltas = []
        for part in self._tokenizer.split(text):
            for token in [part] if isinstance(part, int) else self._tokenizer.encode_text(part):
                if self.answer.stopped:
                    break
                deltas.append(self.answer.push(Token("", token, logprobs=Logprobs(-1.0)), COUNTS))
        return [delta for delta in deltas if delta]

    def whole(self, text: str, reason: str = "stop") -> tuple[str, str, str, Done]:
        """Text, name, arguments and end."""
        deltas = self.push(text)
        last = self.answer.flush(COUNTS)
        deltas += [last] if last else []
        texts = "".join(each.text for each in deltas if isinstance(each, TextDelta))
        calls = [each for each in deltas if isinstance(each, CallDelta)]
        assert all(not each.name for each in calls[1:]), "a name goes with the first one alone"
        assert deltas == sorted(deltas, key=lambda each: isinstance(each, CallDelta)), "a call is behind all text"
        name, arguments = (calls[0].name if calls else ""), "".join(each.arguments for each in calls)
        return texts, name, arguments, self.answer.done(reason, COUNTS)


CALL = '<|action_start|><|plugin|>\n{"name": "f", "parameters": {"city": "上海"}}<|action_end|>'


@pytest.mark.parametrize("text", ["", "Sure, 你好! ", '{"name": "g"}'])
def test_an_answer_is_text_and_then_a_call(tokenizer: Tokenizer, text: str) -> None:
    said, name, arguments, done = Reading(tokenizer).whole(text + CALL)
    assert (said, name, json.loads(arguments)) == (text, "f", {"city": "上海"})
    assert done.finish_reason == "tool_calls"


def test_a_call_that_is_cut_is_no_call_to_make(tokenizer: Tokenizer) -> None:
    cut = CALL[: CALL.index("海")]
    said, name, arguments, done = Reading(tokenizer).whole("x" + cut, "length")
    assert (said, name, done.finish_reason) == ("x", "f", "length")
    assert arguments.rstrip("\ufffd") == '{"city": "上'


LENGTHY = {
    "deep": '{"a": ' + "[" * 3000 + "]" * 3000 + "}",
    "long numbers": '{"a": ' + "9" * 6000 + "}",
}


@pytest.mark.parametrize("arguments", LENGTHY.values(), ids=LENGTHY)
def test_what_python_cannot_read_is_the_clients_to_read(tokenizer: Tokenizer, arguments: str) -> None:
    text = markup.CALL_BEGINS + markup.head("f") + arguments + markup.TAIL
    _, name, said, done = Reading(tokenizer).whole(text + markup.CALL_ENDS)
    assert (name, said, done.finish_reason) == ("f", arguments, "tool_calls")
    for cut in (text, text[:-1], text[:-2], text[: len(text) // 2]):
        _, name, said, done = Reading(tokenizer).whole(cut, "length")
        assert (name, done.finish_reason) == ("f", "length")
        assert said == cut[cut.index(arguments[:5]) :][: len(arguments)]


def test_an_engine_that_ends_within_a_call_has_failed(tokenizer: Tokenizer) -> None:
    reading = Reading(tokenizer)
    stop = Finish("a", FinishReason.STOP)
    reading.push("x" + CALL[: CALL.index("海")])
    assert reading.answer.judged(stop).reason is FinishReason.ERROR
    assert reading.answer.judged(Finish("a", FinishReason.LENGTH)).reason is FinishReason.LENGTH
    reading.push(CALL[CALL.index("海") :])
    assert reading.answer.judged(stop) is stop
    assert Reading(tokenizer).answer.judged(stop) is stop


def test_half_a_character_before_a_cut_is_shown_as_one(tokenizer: Tokenizer) -> None:
    reading = Reading(tokenizer)
    reading.push(markup.CALL_BEGINS + markup.head("f") + '{"a": "')
    byte = next(token for token in tokenizer.codec.byte_ids if tokenizer.token_bytes(token) == b"\xe4")
    assert reading.answer.push(Token("", byte), COUNTS) is None
    last = reading.answer.flush(COUNTS)
    assert isinstance(last, CallDelta)
    assert last.arguments.endswith("\ufffd")


def test_a_stop_string_that_ends_where_a_call_begins_ends_the_answer(tokenizer: Tokenizer) -> None:
    """It is found only when nothing more of the text comes: a longer one might have begun before it."""
    reading = Reading(tokenizer, "ab", "xabc")
    deltas = reading.push("xab" + CALL)
    assert [each.text for each in deltas if isinstance(each, TextDelta)] == ["x"]
    assert not [each for each in deltas if isinstance(each, CallDelta)]
    assert reading.answer.done("stop", COUNTS).finish_reason == "stop"


def test_stop_strings_are_of_the_text_alone(tokenizer: Tokenizer) -> None:
    assert Reading(tokenizer, "city").whole("x" + CALL)[3].finish_reason == "tool_calls"
    said, name, _, done = Reading(tokenizer, "here").whole("x stop here" + CALL)
    assert (said, name, done.finish_reason) == ("x stop ", "", "stop")


def test_what_might_have_become_a_stop_string_is_said_before_the_call(tokenizer: Tokenizer) -> None:
    said, name, _, _ = Reading(tokenizer, "the end.").whole("this is the en" + CALL)
    assert (said, name) == ("this is the en", "f")


def test_only_tokens_of_the_text_are_reported(tokenizer: Tokenizer) -> None:
    deltas = Reading(tokenizer).push("ab 你" + CALL)
    reports = [report for each in deltas if isinstance(each, TextDelta) for report in each.tokens]
    assert bytes(byte for each in reports for byte in each.bytes or []) == "ab 你".encode()


def test_without_marks_the_tokens_of_a_call_say_nothing_of_their_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    answer = AnswerReader(tokenizer, [], Reporter(Spelling(tokenizer)), [])
    start = tokenizer.special_tokens[markup.ACTION_START]
    assert answer.push(Token("", start), COUNTS) is None
    assert answer.done("stop", COUNTS).finish_reason == "stop"
