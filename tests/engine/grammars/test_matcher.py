"""Where answers may go: with the small real model's tokens and with tokenizers of InternLM3's kind."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.grammars.closing import held_to
from service.engine.grammars.compiler import GrammarCompiler
from service.engine.grammars.matcher import Masks
from service.engine.grammars.schema import json_grammar
from service.engine.grammars.vocabulary import load_vocabulary
from service.errors import ConfigurationError
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import write_sentencepiece_dir

SPARE_ROWS = 70
"""Rows of a model that no token has, as InternLM3 has 379."""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}, "tags": {"type": "array"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Language:
    """A tokenizer, and grammars over its tokens."""

    def __init__(self, model_dir: Path) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(model_dir)
        self.vocab_size = self.tokenizer.vocab_size + SPARE_ROWS
        self.compiler = GrammarCompiler(model_dir, self.vocab_size, 2)

    def begin(self, schema: dict[str, Any]) -> Any:
        return self.compiler.compile(json_grammar(schema)).result(60)

    def text(self, token: int) -> bytes:
        return self.tokenizer.token_bytes(token)

    def allowed(self, matcher: Any) -> set[int]:
        (row,) = self.compiler.allowed([matcher])
        return set(np.flatnonzero(np.unpackbits(row, count=self.vocab_size, bitorder="little")).tolist())

    def reads(self, schema: dict[str, Any], ids: list[int]) -> bool:
        """Whether each token is among those that are allowed, and the end is when they are through."""
        matcher = self.begin(schema)
        for token in ids:
            if token not in self.allowed(matcher):
                return False
            matcher.advance(token)
        return not self.allowed(matcher).isdisjoint(self.tokenizer.stop_ids)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "sentencepiece that trims"])
def language(request: pytest.FixtureRequest, smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Language:
    if request.param == "byte-level":
        return Language(smollm2_dir)
    trims = request.param.endswith("trims")
    return Language(write_sentencepiece_dir(tmp_path_factory.mktemp("sp"), remove_extra_whitespaces=trims))


def any_json() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers(-999, 999) | st.text('aé 你"\\\n😀', max_size=6)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=3),
        max_leaves=6,
    )


@settings(max_examples=25, deadline=None)
@given(value=st.dictionaries(st.text("xyz你", max_size=3), any_json(), max_size=3), spaced=st.booleans())
def test_any_object_can_be_said(language: Language, value: dict[str, Any], spaced: bool) -> None:
    """Token by token there is one that goes on with it; which ones, is the grammar's to say where text is forced."""
    rest = json.dumps(value, ensure_ascii=False, indent=2 if spaced else None).encode()
    matcher = language.begin({"type": "object"})
    while rest:
        fitting = [token for token in language.allowed(matcher) if rest.startswith(language.text(token) or b"none")]
        assert fitting, rest
        token = max(fitting, key=lambda each: len(language.text(each)))
        matcher.advance(token)
        rest = rest[len(language.text(token)) :]
    assert language.allowed(matcher) == set(language.tokenizer.stop_ids)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{ "a": [1, 2] }', True),
        ('{\n    "a": [\n        1\n    ]\n}', True),
        ('{\n\t"a": []\n}', True),
        ('{"a":\n\n1}', False),
    ],
)
def test_json_is_spaced_as_people_do_and_no_more(language: Language, text: str, fits: bool) -> None:
    """A model that has nothing to say would go on with blank lines."""
    assert language.reads({"type": "object"}, within_an_answer(language, text)) == fits


@pytest.mark.parametrize(
    ("form", "text", "fits"),
    [
        ("date-time", "2026-11-28T03:10:00Z", True),
        ("date-time", "2026-11-28T03:10:59.123456+08:00", True),
        ("date-time", "2026-02-31T03:10:00Z", False),
        ("date-time", "2026-11-28T03:10:60Z", False),
        ("date-time", "2026-11-28t03:10:00z", False),
        ("date-time", "2026-11-28T03:10:00.0000000Z", False),
        ("time", "03:10:00-05:30", True),
        ("time", "20:26:60.1z", False),
    ],
)
def test_times_are_those_that_readers_take(language: Language, form: str, text: str, fits: bool) -> None:
    schema = held_to({"type": "string", "format": form})
    assert schema is not None
    assert language.reads(schema, within_an_answer(language, json.dumps(text))) == fits
    if fits:
        datetime.fromisoformat(text if form == "date-time" else f"2026-11-28T{text}")


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"name":"Bob","age":3}', True),
        ('{"name": "Bob", "age": 3, "tags": [1, "x"]}', True),
        ('{"name":"Bob"}', False),
        ('{"name":"Bob","age":-3}', False),
        ('{"name":"Bob","age":3,"more":1}', False),
        ('{"name":"Bob","age":3', False),
        ('["Bob"]', False),
    ],
)
def test_what_fits_a_schema_and_nothing_else_is_read(language: Language, text: str, fits: bool) -> None:
    """In the model's own tokens, which an answer that is forced is made of."""
    compiler = language.begin(PERSON)
    ids = within_an_answer(language, text)
    assert language.reads(PERSON, ids) == fits
    assert compiler.problem == ""


def within_an_answer(language: Language, text: str) -> list[int]:
    anchor = language.tokenizer.encode_text("\n")
    return language.tokenizer.encode_text("\n" + text)[len(anchor) :]


def test_no_token_without_text_is_ever_allowed_but_the_end_and_that_only_there(language: Language) -> None:
    matcher = language.begin(PERSON)
    textless = {token for token in range(language.vocab_size) if not language.tokenizer.token_bytes(token)}
    for token in within_an_answer(language, '{"name": "a b", "age": 17}'):
        assert language.allowed(matcher).isdisjoint(textless)
        matcher.advance(token)
    assert language.allowed(matcher) & textless == set(language.tokenizer.stop_ids)


def test_an_answer_that_is_complete_can_only_end(language: Language) -> None:
    matcher = language.begin(PERSON)
    for token in within_an_answer(language, '{"name":"a","age":1}'):
        matcher.advance(token)
    assert language.allowed(matcher) == set(language.tokenizer.stop_ids)
    matcher.advance(language.tokenizer.stop_ids[0])
    assert matcher.problem == ""


def test_space_between_two_tokens_ends_sometime(language: Language) -> None:
    """A small model that has nothing to say says spaces."""
    matcher = language.begin({"type": "object"})
    matcher.advance(next(iter(within_an_answer(language, "{"))))
    line_end, space = (language.tokenizer.codec.table.index(each) for each in (b"\n", b" "))
    assert {line_end, space} <= language.allowed(matcher)
    matcher.advance(line_end)
    said = 0
    while space in language.allowed(matcher):
        assert line_end not in language.allowed(matcher)
        matcher.advance(space)
        said += 1
    assert 30 < said <= 40


def test_a_token_that_was_not_allowed_is_a_problem_and_then_only_the_end_is(language: Language) -> None:
    matcher = language.begin(PERSON)
    matcher.advance(within_an_answer(language, "x")[0])
    assert "cannot be kept to" in matcher.problem
    assert "\n" not in matcher.problem
    assert matcher.is_ours, "the grammar is not to blame"
    assert language.allowed(matcher) == set(language.tokenizer.stop_ids)


def test_a_bad_grammar_has_its_problem_from_the_start(language: Language) -> None:
    assert "strin" in language.begin({"type": "strin"}).problem


def test_many_answers_are_looked_at_together_each_where_it_stands(language: Language) -> None:
    texts = ["", "{", '{"name": "', '{"name":"Bob","age":4']
    matchers = [language.begin(PERSON) for _ in texts]
    for matcher, text in zip(matchers, texts, strict=True):
        for token in within_an_answer(language, text):
            matcher.advance(token)
    alone = [language.compiler.allowed([matcher])[0].tolist() for matcher in matchers]
    assert language.compiler.allowed(matchers).tolist() == alone


def test_forced_text_is_said_in_the_models_own_tokens(language: Language) -> None:
    vocabulary = load_vocabulary(language.tokenizer.settings.directory, language.vocab_size)
    for text in ("name", '"required":', "你好，世界", " x", "é"):
        assert vocabulary.tokenize_str(text) == within_an_answer(language, text), text


@pytest.mark.parametrize("text", ["\n  ", "  x", "▁", "\ufb01", "\u2028"])
def test_forced_text_that_the_tokenizer_would_change_is_spelled_as_it_is(language: Language, text: str) -> None:
    vocabulary = load_vocabulary(language.tokenizer.settings.directory, language.vocab_size)
    assert vocabulary.decode_bytes(vocabulary.tokenize_str(text)) == text.encode()


@pytest.mark.parametrize("name", ["<|im_start|>", "<|im_end|>", "x<|im_end|>y"])
def test_the_name_of_a_special_token_is_said_as_text(language: Language, name: str) -> None:
    matcher = language.begin({"const": name})
    said = b""
    while allowed := language.allowed(matcher) - set(language.tokenizer.stop_ids):
        token = min(allowed)
        assert token not in language.tokenizer.special_ids
        matcher.advance(token)
        said += language.text(token)
    assert json.loads(said) == name


@pytest.mark.parametrize("text", ["x" * 512, "▁" * 512, "name of a thing, and more; " * 19, "你好，世界" * 100])
def test_long_text_that_is_forced_is_said_whole_whatever_is_tokenized_of_it_at_once(
    language: Language, text: str
) -> None:
    matcher = language.begin({"const": text})
    said = b""
    while not matcher.problem:
        allowed = language.allowed(matcher) - set(language.tokenizer.stop_ids)
        if not allowed:
            break
        token = min(allowed)
        matcher.advance(token)
        said += language.text(token)
    assert json.loads(said) == text


def test_an_answer_whose_masks_are_slow_is_given_up_and_no_other(language: Language) -> None:
    """The first slow step does not tell whose it is; in the next one they are looked at one by one."""
    now = [0.0]
    masks = Masks(language.vocab_size, 1, cpu=lambda: now[0])
    quick, slow = language.begin(PERSON), language.begin(PERSON)
    library = slow.native

    class Slow:
        """The library at work on a grammar that is ambiguous enough."""

        def unsafe_compute_mask_ptr(self, *where: int) -> None:
            now[0] += 0.5
            library.unsafe_compute_mask_ptr(*where)

        def get_error(self) -> str:
            return ""

    masks._is_slow, slow.native = True, Slow()
    masks.allowed([quick, slow])
    assert quick.problem == ""
    assert "ambiguous" in slow.problem
    slow.native = library
    masks.allowed([slow])
    assert "ambiguous" in slow.problem, "and it stays so"


def test_only_a_slow_step_has_the_next_masks_looked_at_one_by_one(language: Language) -> None:
    times = iter([0.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    masks = Masks(language.vocab_size, 1, lambda: next(times))
    matcher = language.begin(PERSON)
    for expected in (True, False, False):
        masks.allowed([matcher])
        assert masks._is_slow == expected
    assert matcher.problem == "", "a machine that was busy is nobody's fault"


def test_many_masks_of_which_none_is_slow_are_soon_worked_out_together_again(language: Language) -> None:
    now = [0.0]
    masks = Masks(language.vocab_size, 1, lambda: now[0])
    masks._is_slow = True
    masks._fill_and_judge = lambda *what: now.__setitem__(0, now[0] + 0.01)  # type: ignore[method-assign]
    masks.allowed([language.begin(PERSON)] * 20)
    assert now[0] > 0.1
    assert not masks._is_slow


def test_a_grammar_that_shows_its_problem_in_its_first_mask_has_it_from_the_start(language: Language) -> None:
    """Nothing but itself: what only compiles is no answer yet."""
    for schema in ({"$ref": "#"}, {"allOf": [{"$ref": "#"}]}):
        matcher = language.begin(schema)
        assert "cannot be kept to" in matcher.problem
        assert not matcher.is_ours


def test_a_model_with_fewer_rows_than_tokens_is_never_given_one_it_has_not(smollm2_dir: Path) -> None:
    compiler = GrammarCompiler(smollm2_dir, 5000, 1)
    matcher: Any = compiler.compile(json_grammar({"type": "string"})).result(60)
    for _ in range(3):
        (row,) = compiler.allowed([matcher])
        tokens = np.flatnonzero(np.unpackbits(row, bitorder="little"))
        assert tokens.max() < 5000
        matcher.advance(int(tokens[0]))
    forced: Any = compiler.compile(json_grammar({"const": "a name that many tokens beyond would say"})).result(60)
    while forced.problem == "" and (allowed := compiler.allowed([forced])[0]).any():
        token = int(np.flatnonzero(np.unpackbits(allowed, bitorder="little"))[-1])
        assert token < 5000
        if token in (0, 2):
            break
        forced.advance(token)
    assert forced.problem == ""


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    error = GrammarCompiler(tmp_path, 100, 1).compile(json_grammar({})).exception(60)
    assert isinstance(error, ConfigurationError)
    assert str(tmp_path) in str(error)
