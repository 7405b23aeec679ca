"""Prompts that are no conversation, as tokens."""

from pathlib import Path

import pytest

from service.chat.verbatim import Verbatim
from service.errors import InvalidRequest
from service.tokenizer.loading import load_tokenizer
from service.tokenizer.tokenizer import Tokenizer
from tests.support.tokenizers import update_json, write_byte_level_dir, write_sentencepiece_dir

FIELD = "prompt.3"


@pytest.fixture(scope="module")
def internlm3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_sentencepiece_dir(tmp_path_factory.mktemp("internlm3")))


def encoded(prompt: Verbatim, tokenizer: Tokenizer) -> list[int]:
    return prompt.encode(tokenizer, tokenizer.vocab_size, FIELD)


def test_a_text_is_cut_at_its_special_tokens_alone(internlm3: Tokenizer) -> None:
    start, end = internlm3.special_tokens["<|im_start|>"], internlm3.special_tokens["<|im_end|>"]
    ids = encoded(Verbatim("<|im_start|>user\n the <|x|> <|im_end|>"), internlm3)
    assert ids == [1, start, *internlm3.encode_text("user\n the <|x|> "), end]


def test_the_bos_token_is_added_where_the_settings_ask_for_it_and_it_is_not_there(
    internlm3: Tokenizer, tmp_path: Path
) -> None:
    text = internlm3.encode_text("the")
    assert encoded(Verbatim("the"), internlm3) == [1, *text]
    assert encoded(Verbatim("<s>the"), internlm3) == [1, *text]
    assert encoded(Verbatim("the", begins=False), internlm3) == text
    without = load_tokenizer(write_byte_level_dir(tmp_path))
    assert encoded(Verbatim("the"), without) == without.encode_text("the")


def test_token_ids_are_left_as_they_are(internlm3: Tokenizer) -> None:
    assert encoded(Verbatim([5, 1, 300, 5]), internlm3) == [5, 1, 300, 5]
    assert encoded(Verbatim([0, internlm3.vocab_size - 1]), internlm3) == [0, internlm3.vocab_size - 1]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (Verbatim([]), "no token to go on from"),
        (Verbatim("", begins=False), "no token to go on from"),
        (Verbatim([5, 100]), "has 100, which is no token of the model's: they end at 99"),
        (Verbatim("<|im_end|>"), "which is no token of the model's: they end at 99"),
    ],
)
def test_what_the_model_cannot_read_is_refused(internlm3: Tokenizer, prompt: Verbatim, reason: str) -> None:
    """A token beyond the model's would be read from whatever lies behind its weights."""
    with pytest.raises(InvalidRequest, match=reason) as refused:
        prompt.encode(internlm3, 100, FIELD)
    assert refused.value.field == FIELD


def test_a_special_token_that_swallows_spaces_is_refused(tmp_path: Path) -> None:
    directory = write_sentencepiece_dir(tmp_path)
    trimming = {"content": "<|trim|>", "lstrip": True, "normalized": False, "rstrip": False, "special": True}
    settings = directory / "tokenizer_config.json"
    update_json(settings, added_tokens_decoder={"1": {"content": "<s>", "special": True}, "4000": trimming})
    tokenizer = load_tokenizer(directory)
    with pytest.raises(InvalidRequest, match=r"<\|trim\|> swallows what stands beside it") as refused:
        encoded(Verbatim("the <|trim|> fox"), tokenizer)
    assert refused.value.field == FIELD


def test_any_character_is_read(internlm3: Tokenizer) -> None:
    text = "a\x00b\x1b[31m\x0c\x7f"
    assert internlm3.decode(encoded(Verbatim(text), internlm3)) == text


def test_only_a_text_takes_time_to_read() -> None:
    assert Verbatim("four").characters == 4
    assert Verbatim([1, 2, 3]).characters == 0
