"""Text while it arrives: whole characters only, and the same text however the ids come."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.tokenizer.detokenizer import Detokenizer
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import write_byte_level_dir, write_sentencepiece_dir, write_translation

KINDS = ("dummy prefix", "no dummy prefix", "byte-level", "translation")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    def directory() -> Path:
        return tmp_path_factory.mktemp("model")

    translation = write_sentencepiece_dir(directory())
    write_translation(translation)
    (translation / "tokenizer.model").unlink()
    built = (
        write_sentencepiece_dir(directory()),
        write_sentencepiece_dir(directory(), dummy_prefix=False),
        write_byte_level_dir(directory()),
        translation,
    )
    return dict(zip(KINDS, map(load_tokenizer, built), strict=True))


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    first = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.vocab_size))}
    return [first[bytes([byte])] for byte in data]


def pieces(tokenizer: Tokenizer, batches: list[list[int]]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(batch) for batch in batches), detokenizer.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(data=st.data())
def test_the_pieces_joined_are_the_whole_decoded(loaded: dict[str, Tokenizer], kind: str, data: st.DataObject) -> None:
    tokenizer = loaded[kind]
    token = st.integers(0, tokenizer.vocab_size + 3)
    batches = data.draw(st.lists(st.lists(token, max_size=6), max_size=8))
    whole = tokenizer.decode([token for batch in batches for token in batch])
    assert "".join(pieces(tokenizer, batches)) == whole


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(before=st.text("a b", min_size=1), after=st.text("a b 你"))
def test_a_text_that_goes_on_within_another_joins_it(
    loaded: dict[str, Tokenizer], kind: str, before: str, after: str
) -> None:
    tokenizer = loaded[kind]
    ids = tokenizer.encode_text(before + after)
    for cut in range(1, len(ids)):
        first, second = Detokenizer(tokenizer), Detokenizer(tokenizer, continues=True)
        assert first.push(ids[:cut]) + second.push(ids[cut:]) == before + after


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_valid_text_never_shows_a_replacement_character_on_the_way(
    loaded: dict[str, Tokenizer], kind: str, text: str
) -> None:
    text = text.replace("\ufffd", "").replace("▁", "")
    tokenizer = loaded[kind]
    shown = pieces(tokenizer, [[token] for token in tokenizer.encode_text(text)])
    assert not any("\ufffd" in piece for piece in shown)
    assert "".join(shown) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_character_spread_over_tokens_comes_out_with_its_last_byte(loaded: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = loaded[kind]
    ids = byte_tokens(tokenizer, "😀".encode())
    assert pieces(tokenizer, [[token] for token in ids]) == ["", "", "", "😀", ""]


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        # SentencePiece shows one U+FFFD for each byte, a byte-level decoder one for each broken character.
        ("dummy prefix", b"\xe4\xb8A", ["", "", "��A", ""]),
        ("byte-level", b"\xe4\xb8A", ["", "", "�A", ""]),
        ("dummy prefix", b"\xffA", ["�", "A", ""]),
        ("byte-level", b"\xffA", ["�", "A", ""]),
        ("dummy prefix", b"\xf0\x9f\x98", ["", "", "", "���"]),
        ("byte-level", b"\xf0\x9f\x98", ["", "", "", "�"]),
        ("byte-level", b"\xf0\xf0\x9f\x98\x80", ["", "�", "", "", "😀", ""]),
    ],
)
def test_bytes_that_are_no_character_come_out_as_soon_as_that_is_certain(
    loaded: dict[str, Tokenizer], kind: str, data: bytes, shown: list[str]
) -> None:
    tokenizer = loaded[kind]
    assert pieces(tokenizer, [[token] for token in byte_tokens(tokenizer, data)]) == shown


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("dummy prefix", "the the"),
        ("no dummy prefix", " the the"),
        ("byte-level", " the the"),
        ("translation", "the the"),
    ],
)
def test_only_the_space_that_the_tokenizer_itself_adds_is_dropped(
    loaded: dict[str, Tokenizer], kind: str, shown: str
) -> None:
    tokenizer = loaded[kind]
    the = tokenizer.encode_text(" the")[-1:]
    assert tokenizer.token_bytes(the[0]) == b" the"
    assert "".join(pieces(tokenizer, [the, the])) == shown
    assert "".join(pieces(tokenizer, [[], sorted(tokenizer.special_ids), the, the])) == shown


def test_an_answer_keeps_the_spaces_it_begins_with(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["dummy prefix"]
    assert "".join(pieces(tokenizer, [[token] for token in tokenizer.encode_text("  x  y ")])) == "  x  y "


def test_a_space_from_a_byte_token_is_never_the_tokenizers_own(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["dummy prefix"]
    space = min(tokenizer.codec.byte_ids) + 0x20
    assert tokenizer.decode([space]) == " "


def test_special_ids_within_a_character_do_not_break_it(loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded["byte-level"]
    first, *rest = byte_tokens(tokenizer, "é".encode())
    assert "".join(pieces(tokenizer, [[first], tokenizer.stop_ids, rest])) == "é"
