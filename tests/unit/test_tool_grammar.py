"""What an answer may be where tools are offered, token by token, for tokenizers of InternLM3's kind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.chat.templates import ChatTemplate
from service.chat.tools.grammar import calling_grammar
from service.chat.tools.offer import Offer, Tool
from service.engine.grammars.compiler import GrammarCompiler
from service.errors import InvalidRequest
from service.tokenizer.loading import load_tokenizer
from tests.support.tokenizers import write_sentencepiece_dir

WEATHER = Tool(
    "weather",
    "Of a city.",
    {
        "type": "object",
        "title": "Weather",
        "properties": {"city": {"type": "string", "description": "A city."}, "unit": {"enum": ["C", "F"]}},
        "required": ["city"],
    },
)
NOW = Tool("now", "", {"type": "object", "properties": {}, "additionalProperties": False})
TOOLS = (WEATHER, NOW)


class Language:
    """A tokenizer, and what answers in it may be."""

    def __init__(self, model_dir: Path) -> None:
        self.tokenizer = load_tokenizer(model_dir)
        template = ChatTemplate.load(model_dir, self.tokenizer)
        assert template.call_marks is not None
        self.marks = template.call_marks
        self.vocab_size = self.tokenizer.vocab_size + 70
        self.compiler = GrammarCompiler(model_dir, self.vocab_size, 1)

    def begin(self, offer: Offer, schema: dict[str, Any] | None = None) -> Any:
        return self.compiler.compile(calling_grammar(offer, self.marks, schema)[0]).result(60)

    def allowed(self, matcher: Any) -> set[int]:
        (row,) = self.compiler.allowed([matcher])
        assert matcher.problem == ""
        return set(np.flatnonzero(np.unpackbits(row, count=self.vocab_size, bitorder="little")).tolist())

    def reads(self, text: str, offer: Offer, schema: dict[str, Any] | None = None) -> bool:
        """Whether there is always a token that goes on with it, and the end is allowed when it is through."""
        matcher = self.begin(offer, schema)
        for part in self.tokenizer.split(text):
            if not (self.goes_on(matcher, part) if isinstance(part, int) else self.says(matcher, part.encode())):
                return False
        return self.may_end(matcher)

    def goes_on(self, matcher: Any, token: int) -> bool:
        if token not in self.allowed(matcher):
            return False
        matcher.advance(token)
        return True

    def says(self, matcher: Any, rest: bytes) -> bool:
        """The longest tokens first: where text is forced, it is in the model's own tokens alone."""
        while rest:
            fitting = [t for t in self.allowed(matcher) if rest.startswith(self.tokenizer.token_bytes(t) or b"none")]
            if not fitting:
                return False
            token = max(fitting, key=lambda each: len(self.tokenizer.token_bytes(each)))
            matcher.advance(token)
            rest = rest[len(self.tokenizer.token_bytes(token)) :]
        return True

    def may_end(self, matcher: Any) -> bool:
        return not self.allowed(matcher).isdisjoint(self.tokenizer.stop_ids)


@pytest.fixture(scope="module", params=["", "that trims"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Language:
    trims = bool(request.param)
    return Language(write_sentencepiece_dir(tmp_path_factory.mktemp("sp"), remove_extra_whitespaces=trims))


def called(text: str) -> str:
    return f"<|action_start|><|plugin|>\n{text}<|action_end|>"


ANSWERS = {
    "nothing": ("", True, False),
    "text": ("你好，<b>world</b> {\n", True, False),
    "a control character": ("a\x00", False, False),
    "an escape": ("\x1b[0m", False, False),
    "a deletion": ("\x7f", False, False),
    "marks that are only text": ("<|action_​start|>", True, False),
    "a call": (called('{"name": "weather", "parameters": {"city": "上海", "unit": "C"}}'), False, True),
    "a call of another": (called('{"name": "now", "parameters": {}}'), False, True),
    "space in its arguments": (called('{"name": "weather", "parameters": {\n  "city":"x" }}'), False, True),
    "space before it": (called(' \n{"name": "now", "parameters": {}}'), False, True),
    "no such tool": (called('{"name": "rain", "parameters": {}}'), False, False),
    "the arguments of another": (called('{"name": "now", "parameters": {"city": "x"}}'), False, False),
    "too few arguments": (called('{"name": "weather", "parameters": {}}'), False, False),
    "an argument more": (called('{"name": "weather", "parameters": {"city": "x", "x": 1}}'), False, False),
    "a wrong argument": (called('{"name": "weather", "parameters": {"city": "x", "unit": "K"}}'), False, False),
    "a call without an end": ('<|action_start|><|plugin|>\n{"name": "now", "parameters": {}}', False, False),
    "a call of the interpreter": ("<|action_start|><|interpreter|>\nprint(1)<|action_end|>", False, False),
    "a turn of another": ("<|im_start|>user\nhi", False, False),
    "an end of what did not begin": ("x<|action_end|>", False, False),
    "text behind a call": (called('{"name": "now", "parameters": {}}') + "x", False, False),
}


@pytest.mark.parametrize(("text", "is_text", "is_call"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_may_call_a_tool_behind_its_text_or_not(
    language: Language, text: str, is_text: bool, is_call: bool
) -> None:
    offer = Offer(TOOLS)
    assert language.reads(text, offer) == (is_text or is_call)
    if text.startswith("<|action_start|>"):
        assert language.reads("Let me see." + text, offer) == is_call


@pytest.mark.parametrize(("text", "is_text", "is_call"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_must_call_does_nothing_else(
    language: Language, text: str, is_text: bool, is_call: bool
) -> None:
    assert language.reads(text, Offer(TOOLS, demanded=True)) == is_call


def test_of_one_that_is_demanded_by_name_no_other_is_called(language: Language) -> None:
    offer = Offer((NOW,), demanded=True)
    assert language.reads(called('{"name": "now", "parameters": {}}'), offer)
    assert not language.reads(called('{"name": "weather", "parameters": {"city": "x"}}'), offer)


def test_an_answer_in_json_may_be_a_call_instead(language: Language) -> None:
    offer, schema = Offer(TOOLS), {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert language.reads('{"a": 1}', offer, schema)
    assert language.reads(called('{"name": "now", "parameters": {}}'), offer, schema)
    assert not language.reads("hello", offer, schema)
    assert not language.reads('{"a": 1}' + called('{"name": "now", "parameters": {}}'), offer, schema)


def test_a_text_may_end_between_any_two_characters_and_not_within_one(language: Language) -> None:
    matcher = language.begin(Offer(TOOLS))
    bytes_alone = {language.tokenizer.token_bytes(token): token for token in language.tokenizer.codec.byte_ids}
    ends = []
    for byte in "a你".encode():
        assert language.goes_on(matcher, bytes_alone[bytes([byte])])
        ends.append(language.may_end(matcher))
    assert ends == [True, False, False, True]


LAX: dict[str, dict[str, Any]] = {
    "nothing but a keyword that can't be kept to": {"type": "object", "not": {}},
    "a type that there is not": {"type": "object", "properties": {"a": {"type": "int"}}},
    "one that would take minutes": {
        "type": "object",
        "properties": {"a": {"type": "integer", "multipleOf": 99_999_989}},
    },
    "no object": {"type": "string"},
    "one that is nested without end": json.loads('{"items":' * 70 + "{}" + "}" * 70),
}


@pytest.mark.parametrize("parameters", LAX.values(), ids=LAX)
def test_a_tool_whose_schema_cannot_be_kept_to_is_called_with_any_object(
    language: Language, parameters: dict[str, Any]
) -> None:
    offer = Offer((Tool("lax", "", parameters), NOW))
    assert calling_grammar(offer, language.marks, None)[1] == 1
    assert language.reads(called('{"name": "lax", "parameters": {"any": [1, {}]}}'), offer)
    assert not language.reads(called('{"name": "lax", "parameters": 5}'), offer)
    assert not language.reads(called('{"name": "now", "parameters": {"any": 1}}'), offer), "the others are kept to"


def test_what_of_a_schema_can_be_kept_to_is(language: Language) -> None:
    """As pydantic writes a set: a keyword that cannot be kept to costs no call its arguments' names."""
    tags = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    offer = Offer((Tool("tag", "", {"type": "object", "properties": {"tags": tags}}),))
    assert calling_grammar(offer, language.marks, None)[1] == 0
    assert language.reads(called('{"name": "tag", "parameters": {"tags": ["a"]}}'), offer)
    assert not language.reads(called('{"name": "tag", "parameters": {"tags": [1]}}'), offer)
    assert not language.reads(called('{"name": "tag", "parameters": {"labels": ["a"]}}'), offer)


@pytest.mark.parametrize("parameters", LAX.values(), ids=LAX)
def test_unless_it_is_strict(language: Language, parameters: dict[str, Any]) -> None:
    offer = Offer((NOW, Tool("lax", "", parameters, strict=True, field="tools.1.parameters")))
    with pytest.raises(InvalidRequest, match=r"the parameters of lax cannot be kept to: .+Leave out") as caught:
        language.begin(offer)
    assert caught.value.field == "tools.1.parameters"


def many(count: int, properties: int, *, strict: bool = False) -> tuple[Tool, ...]:
    each = {f"property_{n}": {"type": "string", "description": "What it is for. " * 20} for n in range(properties)}
    parameters = {"type": "object", "properties": each, "additionalProperties": False}
    return tuple(Tool(f"tool_{n}", "", parameters, strict, f"tools.{n + 1}") for n in range(count))


def test_descriptions_do_not_count_and_forty_tools_are_kept_to(language: Language) -> None:
    offer = Offer(many(40, 6))
    assert calling_grammar(offer, language.marks, None)[1] == 0
    assert language.reads(called('{"name": "tool_39", "parameters": {"property_5": "x"}}'), offer)
    assert not language.reads(called('{"name": "tool_39", "parameters": {"property_9": "x"}}'), offer)


def test_of_more_than_can_be_kept_to_together_the_last_are_called_with_any_objects(language: Language) -> None:
    offer = Offer(many(128, 6))
    lax = calling_grammar(offer, language.marks, None)[1]
    assert 60 < lax < 90
    for at, is_lax in ((127 - lax, False), (128 - lax, True), (127, True)):
        assert language.reads(called(f'{{"name": "tool_{at}", "parameters": {{"property_9": "x"}}}}'), offer) == is_lax
    assert not language.reads(called('{"name": "tool_128", "parameters": {}}'), offer)


def test_strict_ones_come_first(language: Language) -> None:
    strict = Tool("s", "", NOW.parameters, strict=True)
    offer = Offer((*many(127, 6), strict))
    assert language.reads(called('{"name": "s", "parameters": {}}'), offer)
    assert not language.reads(called('{"name": "s", "parameters": {"x": 1}}'), offer)
    with pytest.raises(InvalidRequest, match=r"of tool_\d+ cannot be kept to beside .+Offer fewer, or leave") as caught:
        language.begin(Offer((strict, *many(127, 6, strict=True))))
    first = int(str(caught.value.field).split(".")[1])
    assert language.reads(called('{"name": "s", "parameters": {}}'), Offer((strict, *many(first - 1, 6, strict=True))))


def test_a_tool_that_takes_anything_is_none_that_is_not_held(language: Language) -> None:
    anything = (Tool("a", "", {}), Tool("b", "", {"type": "object", "description": "Anything."}))
    assert calling_grammar(Offer((*anything, Tool("c", "", {"not": {}}))), language.marks, None)[1] == 1


def said(language: Language, matcher: Any, choose: Sequence[int]) -> list[int]:
    """An answer of whoever takes the `choose`d of the tokens that are allowed, by their order, until it may end."""
    tokens: list[int] = []
    for at in range(400):
        allowed = sorted(language.allowed(matcher))
        token = allowed[choose[at % len(choose)] % len(allowed)]
        if token in language.tokenizer.stop_ids:
            break
        tokens.append(token)
        matcher.advance(token)
    return tokens


@pytest.mark.parametrize("choose", [[0], [1], [-1], [3, 1, 4, 1, 5, 9, 2, 6], [7, 11]])
def test_whatever_is_chosen_it_is_a_call(language: Language, choose: list[int]) -> None:
    """But for strings without end, which none of these have."""
    parameters = {"properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"]}
    tools = (Tool("count", "", parameters | {"additionalProperties": False}), NOW)
    start, plugin, *inside, end = said(language, language.begin(Offer(tools, demanded=True)), choose)
    assert (start, plugin, end) == language.marks
    call = json.loads(language.tokenizer.decode(inside))
    assert call["name"] in ("count", "now")
    assert call["parameters"].keys() == ({"n"} if call["name"] == "count" else set())
