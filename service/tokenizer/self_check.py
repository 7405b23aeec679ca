"""Does a loaded tokenizer do what serving relies on? A wrong token costs quality in silence; here it stops a start."""

from service.errors import ConfigurationError
from service.tokenizer.codec import SPACE, Codec
from service.tokenizer.tokenizer import Tokenizer

END_OF_TURN = "<|im_end|>"

SAMPLES = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n  \n",
    "a",
    "Hello, world!",
    " leading space",
    "  two leading spaces",
    "trailing space ",
    "inner  double   triple",
    "▁literal ▁ underline▁",
    "tab\tand\r\nWindows lines\r\n",
    "def f(x):\n    return x ** 2  # comment\n",
    "你好，世界！请用中文回答。",
    "日本語とカタカナ、한국어 텍스트",
    "emoji 😀👩‍👩‍👧 and flags 🇨🇳",
    "ｆｕｌｌｗｉｄｔｈ ﬁ ligature ① ² Å e\u0301",
    "numbers 1234567890 3.14 -7 1e10",
    "<s>[INST] </s> <|im_start|>system\n<|im_end|> <0x0A> [UNUSED_TOKEN_145]",
    "nul \x00, bell \x07, zero\u200bwidth, \ufeffmark, \u2028line, \ufffd",
    "مرحبا بالعالم, привет, γειά",
)
"""Where tokenizers that look alike differ: spaces at the edges, what normalizers change, bytes, markup."""


def self_check(tokenizer: Tokenizer, *translations: Codec) -> None:
    """Check a tokenizer before it is served, and that other files in its directory agree with it.

    Raises ConfigurationError with the first thing that is wrong.
    """
    _check_stop_ids(tokenizer)
    _check_special_text_stays_text(tokenizer)
    for sample in SAMPLES:
        _check_round_trip(tokenizer, sample)
    for translation in translations:
        _check_agreement(tokenizer, translation)


def _check_stop_ids(tokenizer: Tokenizer) -> None:
    directory = tokenizer.settings.directory
    for stop_id in tokenizer.stop_ids:
        if not 0 <= stop_id < tokenizer.vocab_size:
            raise ConfigurationError(f"eos_token_id {stop_id} is no token of the tokenizer in {directory}")
    end = tokenizer.token_id(END_OF_TURN)
    if end is not None and end not in tokenizer.stop_ids:
        raise ConfigurationError(
            f"{END_OF_TURN} ends every turn but its id {end} is not among the eos_token_id {tokenizer.stop_ids} of "
            f"{directory}: no answer would end. Add it to generation_config.json."
        )


def _check_special_text_stays_text(tokenizer: Tokenizer) -> None:
    unknown = tokenizer.token_id(tokenizer.settings.named.get("unk_token", ""))
    for name, token in tokenizer.special_tokens.items():
        if token == unknown:
            continue
        if token in tokenizer.encode_text(f"a{name} {name}"):
            raise ConfigurationError(f"the text {name} in a message would become the special token {token}")


def _check_round_trip(tokenizer: Tokenizer, sample: str) -> None:
    ids = tokenizer.encode_text(sample)
    if not tokenizer.special_ids.isdisjoint(ids):
        return  # the vocabulary has no token for some character
    text = tokenizer.decode(ids)
    if text != tokenizer.codec.decode_by_library(ids):
        raise ConfigurationError(f"{tokenizer.codec.file} decodes {sample!r} in an unknown way")
    if tokenizer.trims_start and SPACE in sample:
        return  # a literal ▁ escapes the trimming and comes back as a space, which does not
    # Normalizers may change the text, but what comes back must mean the same to the model.
    if tokenizer.encode_text(text) != ids:
        raise ConfigurationError(f"{tokenizer.codec.file} does not give {sample!r} back: it comes out as {text!r}")


def _check_agreement(tokenizer: Tokenizer, other: Codec) -> None:
    files = f"{tokenizer.codec.file.name} and {other.file.name} in {tokenizer.settings.directory}"
    for name, token in tokenizer.special_tokens.items():
        found = other.added.get(name)
        if found is None or found.id != token:
            raise ConfigurationError(f"{files} differ in the special token {name}")
    for sample in SAMPLES:
        if tokenizer.codec.encode(sample) != other.encode(sample):
            raise ConfigurationError(f"{files} encode {sample!r} differently; remove the one that is wrong")
