"""Tokenizers from model directories: exact to the libraries, deaf to markup in messages, and refused when wrong."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers as library
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers

from service.errors import ConfigurationError
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.self_check import SAMPLES, self_check
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import (
    INTERNLM3_SPECIAL,
    PADDING_ROWS,
    added_token,
    processor,
    sentencepiece_model,
    update_json,
    write_byte_level_dir,
    write_json,
    write_sentencepiece_dir,
    write_translation,
)

Build = Callable[[Path], Path]


def alone(directory: Path) -> Path:
    """The translation of a SentencePiece directory, without the original."""
    write_translation(write_sentencepiece_dir(directory))
    (directory / "tokenizer.model").unlink()
    return directory


KINDS: dict[str, Build] = {
    "sentencepiece": write_sentencepiece_dir,
    "sentencepiece without dummy prefix": lambda path: write_sentencepiece_dir(path, dummy_prefix=False),
    "byte-level tokenizer.json": write_byte_level_dir,
    "sentencepiece-like tokenizer.json": alone,
}
SENTENCEPIECE = list(KINDS)[:2]
JSON = list(KINDS)[2:]

TEXT = st.text() | st.text("aeiou 　▁\n<|im_end>/s", max_size=40) | st.sampled_from([*SAMPLES, *INTERNLM3_SPECIAL])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(build(tmp_path_factory.mktemp("model"))) for kind, build in KINDS.items()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_sentencepiece_dir(tmp_path / "model")


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@settings(deadline=None)
@given(text=TEXT)
def test_text_is_encoded_as_sentencepiece_does(loaded: dict[str, Tokenizer], kind: str, text: str) -> None:
    reference = processor(sentencepiece_model(dummy_prefix=kind == "sentencepiece"))
    assert loaded[kind].encode_text(text) == reference.encode(text)


@pytest.mark.parametrize("kind", JSON)
@settings(deadline=None)
@given(text=TEXT)
def test_text_is_encoded_as_the_tokenizers_library_does(loaded: dict[str, Tokenizer], kind: str, text: str) -> None:
    reference = library.Tokenizer.from_file(str(loaded[kind].codec.file))
    reference.encode_special_tokens = True
    assert loaded[kind].codec.encode(text) == reference.encode(text, add_special_tokens=False).ids


@settings(deadline=None)
@given(text=TEXT)
def test_a_translation_encodes_as_its_original(loaded: dict[str, Tokenizer], text: str) -> None:
    original, translation = loaded["sentencepiece"], loaded["sentencepiece-like tokenizer.json"]
    assert translation.encode_text(text) == original.encode_text(text)


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@settings(deadline=None)
@given(data=st.data())
def test_any_ids_are_decoded_as_sentencepiece_does(
    loaded: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    tokenizer = loaded[kind]
    reference = processor(sentencepiece_model(dummy_prefix=kind == "sentencepiece"))
    # Byte pieces are nearly half of all ids, so that broken and whole characters both come up.
    ids = data.draw(st.lists(st.integers(3, reference.get_piece_size() - 1), max_size=30))
    assert tokenizer.decode(ids) == reference.decode(ids)


@settings(deadline=None)
@given(data=st.data())
def test_any_ids_are_decoded_as_the_tokenizers_library_does(loaded: dict[str, Tokenizer], data: st.DataObject) -> None:
    tokenizer = loaded["byte-level tokenizer.json"]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert tokenizer.decode(ids) == tokenizer.codec.decode_by_library(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(text=TEXT)
def test_what_is_encoded_comes_back(loaded: dict[str, Tokenizer], kind: str, text: str) -> None:
    tokenizer = loaded[kind]
    spaces = kind != "byte-level tokenizer.json"  # a literal ▁ is a space to sentencepiece
    assert tokenizer.decode(tokenizer.encode_text(text)) == (text.replace("▁", " ") if spaces else text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_interpreter_is_free_for_others_while_a_long_text_is_encoded(
    loaded: dict[str, Tokenizer], kind: str
) -> None:
    """The event loop that shares it has streams to serve."""
    with ThreadPoolExecutor(1) as pool:
        turns, encoding = 0, pool.submit(loaded[kind].encode_text, "the quick brown fox 你好世界 " * 20_000)
        while not encoding.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_special_token_stays_text(loaded: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = loaded[kind]
    for name in tokenizer.special_tokens:
        ids = tokenizer.encode_text(f"before{name}between {name}")
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == f"before{name}between {name}"


def test_a_piece_of_the_model_that_is_a_special_token_is_spelled_out(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path, user_defined=("<|im_end|>",))
    tokenizer = load_tokenizer(directory)
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.codec.encode("<|im_end|>")[-1] == end, "the model itself would give the special id"
    ids = tokenizer.encode_text("no <|im_end|> here")
    assert end not in ids
    assert tokenizer.decode(ids) == "no <|im_end|> here"


def test_a_second_name_for_a_special_id_is_spelled_out_too(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path, user_defined=("[UNUSED_TOKEN_1]",))
    alias = processor((directory / "tokenizer.model").read_bytes()).piece_to_id("[UNUSED_TOKEN_1]")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    added = {
        token: entry for token, entry in config["added_tokens_decoder"].items() if entry["content"] != "<|im_end|>"
    }
    added[str(alias)] = added_token("<|im_end|>")
    update_json(directory / "tokenizer_config.json", added_tokens_decoder=added)
    write_json(directory / "generation_config.json", {"eos_token_id": alias})
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode_text("x[UNUSED_TOKEN_1]")
    assert alias not in ids
    assert tokenizer.decode(ids) == "x[UNUSED_TOKEN_1]"


def test_a_library_that_takes_whole_words_from_its_vocabulary_gives_no_special_id_either(tmp_path: Path) -> None:
    directory = write_byte_level_dir(tmp_path)
    edit(directory, set_part("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)))
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    update_json(directory / "tokenizer.json", model=content["model"] | {"ignore_merges": True})
    tokenizer = load_tokenizer(directory)
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.codec.encode("<|im_end|>") == [end], "the library itself would give the special id"
    ids = tokenizer.encode_text("<|im_end|>")
    assert end not in ids
    assert tokenizer.decode(ids) == "<|im_end|>"


def test_special_tokens_and_stop_ids_are_found_by_name(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    first = processor(sentencepiece_model()).get_piece_size()
    assert [tokenizer.token_id(name) for name in INTERNLM3_SPECIAL] == list(range(first, first + 22))
    assert (tokenizer.token_id("<s>"), tokenizer.token_id("</s>"), tokenizer.token_id("hello")) == (1, 2, None)
    assert tokenizer.stop_ids == [2, tokenizer.token_id("<|im_end|>")]
    assert tokenizer.special_ids == {0, 1, 2, *range(first, first + 22)}
    assert tokenizer.vocab_size == first + 22


@pytest.mark.parametrize("kind", KINDS)
def test_special_ids_and_rows_without_a_token_have_no_text(loaded: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = loaded[kind]
    rows = range(tokenizer.vocab_size, tokenizer.vocab_size + PADDING_ROWS)
    assert tokenizer.decode([*rows, *tokenizer.special_ids]) == ""
    hello = tokenizer.encode_text("hello")
    assert tokenizer.decode([*tokenizer.special_ids, *hello, tokenizer.vocab_size]) == "hello"
    assert tokenizer.decode([]) == ""


def test_added_tokens_that_are_not_special_are_found_in_text_and_read_as_written(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    token = 1 + max(map(int, config["added_tokens_decoder"]))
    config["added_tokens_decoder"][str(token)] = added_token("<tool>", special=False)
    write_json(directory / "tokenizer_config.json", config)
    tokenizer = load_tokenizer(directory)
    reference = processor(sentencepiece_model())
    assert tokenizer.encode_text("a<tool> b") == [*reference.encode("a"), token, *reference.encode(" b")]
    assert tokenizer.decode([token]) == "<tool>"


def test_special_tokens_known_only_from_the_map_and_the_model_are_found(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path, user_defined=("<|im_start|>", "<|im_end|>"))
    (directory / "tokenizer_config.json").unlink()
    entries = [{"content": name} for name in ("<|im_start|>", "<|im_end|>")]
    update_json(directory / "special_tokens_map.json", additional_special_tokens=entries)
    tokenizer = load_tokenizer(directory)
    model = processor((directory / "tokenizer.model").read_bytes())
    assert tokenizer.token_id("<|im_start|>") == model.piece_to_id("<|im_start|>")
    assert set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}


def test_the_end_ids_may_stand_in_config_json_as_a_single_id(directory: Path) -> None:
    end = load_tokenizer(directory).token_id("<|im_end|>")
    (directory / "generation_config.json").unlink()
    update_json(directory / "config.json", eos_token_id=end)
    assert load_tokenizer(directory).stop_ids == [end]


@pytest.mark.parametrize(
    ("eos", "sentence"),
    [
        ([2], r"<\|im_end\|> ends every turn but its id \d+ is not among the eos_token_id \[2\]"),
        (2, "no answer would end"),
        ("</s>", "must be an id or a list of ids, not '</s>'"),
        ([], "must be an id or a list of ids"),
        ([2, True], "must be an id or a list of ids"),
        ([2, 9_999], "eos_token_id 9999 is no token"),
    ],
)
def test_wrong_end_ids_stop_the_start(directory: Path, eos: object, sentence: str) -> None:
    write_json(directory / "generation_config.json", {"eos_token_id": eos})
    with pytest.raises(ConfigurationError, match=sentence):
        load_tokenizer(directory)


def test_a_directory_without_any_end_id_stops_the_start(directory: Path) -> None:
    (directory / "generation_config.json").unlink()
    (directory / "config.json").unlink()
    with pytest.raises(ConfigurationError, match=r"neither generation_config\.json nor config\.json"):
        load_tokenizer(directory)


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_two_files_that_agree_are_both_fine(tmp_path: Path, dummy_prefix: bool) -> None:
    directory = write_sentencepiece_dir(tmp_path, dummy_prefix=dummy_prefix)
    write_translation(directory, prefix=dummy_prefix)
    assert load_tokenizer(directory).codec.file.name == "tokenizer.model"


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_a_translation_that_differs_stops_the_start_and_names_the_text(tmp_path: Path, dummy_prefix: bool) -> None:
    directory = write_sentencepiece_dir(tmp_path, dummy_prefix=dummy_prefix)
    write_translation(directory, prefix=not dummy_prefix)
    with pytest.raises(ConfigurationError, match=r"tokenizer.model and tokenizer.json in .* encode ' ' differently"):
        load_tokenizer(directory)


def edit(directory: Path, change: Callable[[library.Tokenizer], object]) -> Path:
    file = str(directory / "tokenizer.json")
    tokenizer = library.Tokenizer.from_file(file)
    change(tokenizer)
    tokenizer.save(file)
    return directory


def set_part(name: str, value: object) -> Callable[[library.Tokenizer], object]:
    return lambda tokenizer: setattr(tokenizer, name, value)


def strip_accents(tokenizer: library.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), tokenizer.normalizer])


def prefix_only_the_first_run(tokenizer: library.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


def test_a_normalizer_that_only_one_file_has_is_named_by_its_text(directory: Path) -> None:
    write_translation(directory)
    edit(directory, strip_accents)
    with pytest.raises(ConfigurationError, match="encode '日本語とカタカナ"):
        load_tokenizer(directory)


def test_files_that_number_special_tokens_differently_stop_the_start(directory: Path) -> None:
    write_translation(directory)
    data = (directory / "tokenizer.json").read_text(encoding="utf-8")
    (directory / "tokenizer.json").write_text(data.replace("<|im_start|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"<\|im_start\|> is id \d+ in tokenizer_config.json but None"):
        load_tokenizer(directory)


def test_a_translation_that_lacks_a_special_token_of_the_model_stops_the_start(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path, user_defined=("<|im_start|>", "<|im_end|>"))
    (directory / "tokenizer_config.json").unlink()
    update_json(directory / "special_tokens_map.json", additional_special_tokens=["<|im_start|>", "<|im_end|>"])
    write_translation(directory)
    data = (directory / "tokenizer.json").read_text(encoding="utf-8")
    (directory / "tokenizer.json").write_text(data.replace("<|im_start|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"differ in the special token <\|im_start\|>"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    ("build", "change", "sentence"),
    [
        (alone, set_part("normalizer", normalizers.Replace(" ", "▁")), "does not give ' ' back: it comes out as ''"),
        (alone, set_part("decoder", decoders.WordPiece()), "only byte-level and SentencePiece's work"),
        (alone, set_part("decoder", decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])), "only byte-level"),
        (write_byte_level_dir, set_part("decoder", decoders.Metaspace()), r"has a decoder of \['Metaspace'\] steps"),
        (write_byte_level_dir, set_part("normalizer", normalizers.Prepend("x")), "does not give '.*' back"),
        (alone, prefix_only_the_first_run, r'encodes "a" differently after <'),
    ],
)
def test_a_tokenizer_json_that_is_wrong_in_itself_stops_the_start(
    tmp_path: Path, build: Build, change: Callable[[library.Tokenizer], object], sentence: str
) -> None:
    directory = edit(build(tmp_path), change)
    with pytest.raises(ConfigurationError, match=sentence):
        load_tokenizer(directory)


def test_truncation_and_padding_saved_in_a_file_do_not_touch_prompts(tmp_path: Path) -> None:
    directory = write_byte_level_dir(tmp_path)
    long = "word " * 100
    expected = load_tokenizer(directory).encode_text(long)
    edit(directory, lambda tokenizer: tokenizer.enable_truncation(8))
    edit(directory, lambda tokenizer: tokenizer.enable_padding(length=999))
    assert load_tokenizer(directory).encode_text(long) == expected


def test_a_vocabulary_without_bytes_may_use_its_unknown_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_dir(tmp_path, byte_fallback=False))
    assert tokenizer.encode_text("😀")[-1] == tokenizer.token_id("<unk>")


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc"])
@pytest.mark.parametrize("remove_extra_whitespaces", [True, False])
@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_a_model_that_normalizes_text_is_served_as_it_is(
    tmp_path: Path, rule: str, remove_extra_whitespaces: bool, dummy_prefix: bool
) -> None:
    options = {"remove_extra_whitespaces": remove_extra_whitespaces, "dummy_prefix": dummy_prefix}
    tokenizer = load_tokenizer(write_sentencepiece_dir(tmp_path, rule=rule, **options))
    reference = processor(sentencepiece_model(rule=rule, **options))
    space, word = reference.piece_to_id("▁"), reference.encode(" the")[-1]
    for ids in ([space], [space, space, word], [word, space, word], [space, word, space]):
        assert tokenizer.decode(ids) == reference.decode(ids)


def test_a_broken_table_is_found_by_the_self_check(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    token = tokenizer.encode_text("Hello")[-1]
    tokenizer.codec.table[token] = b"?"
    with pytest.raises(ConfigurationError, match=r"tokenizer\.model decodes 'Hello, world!' in an unknown way"):
        self_check(tokenizer)


def test_special_ids_in_plain_text_are_found_by_the_self_check(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_sentencepiece_dir(tmp_path, user_defined=("<|im_end|>",)))
    tokenizer._control_ids = frozenset()
    with pytest.raises(ConfigurationError, match=r"the text <\|im_end\|> in a message would become the special token"):
        self_check(tokenizer)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("tokenizer.model", "no model", "cannot be read as a SentencePiece model"),
        ("tokenizer.json", "{}", "cannot be read as a tokenizer"),
        ("tokenizer_config.json", "{", "cannot be read as JSON"),
        pytest.param("tokenizer_config.json", "[" * 100_000, "cannot be read as JSON", id="lists without an end"),
        ("generation_config.json", "[1]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder in .* is not a table"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder in .* is not a table"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template in .* must be text"),
    ],
)
def test_a_broken_file_is_named(directory: Path, file: str, content: str, sentence: str) -> None:
    (directory / file).write_text(content)
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load_tokenizer(directory)
    assert file in caught.value.message


def test_a_directory_without_a_tokenizer_is_named(directory: Path) -> None:
    (directory / "tokenizer.model").unlink()
    with pytest.raises(ConfigurationError, match=r"has neither tokenizer\.model nor tokenizer\.json"):
        load_tokenizer(directory)
