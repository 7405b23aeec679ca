"""Tokenizers from model directories: a SentencePiece model (InternLM3) or a tokenizer.json (SmolLM2), checked."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from service.errors import ConfigurationError
from service.tokenizer.codec import Codec
from service.tokenizer.json_codec import JsonCodec
from service.tokenizer.self_check import self_check
from service.tokenizer.sentencepiece_codec import SentencePieceCodec
from service.tokenizer.settings import TokenizerSettings, read_tokenizer_settings
from service.tokenizer.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Load and check the tokenizer of a model directory.

    Raises ConfigurationError if files are missing or broken, or the tokenizer does not do what it must (`self_check`).
    """
    start = time.perf_counter()
    settings = read_tokenizer_settings(model_dir)
    codecs = list(_codecs(model_dir, settings))
    if not codecs:
        raise ConfigurationError(f"{model_dir} has neither tokenizer.model nor tokenizer.json")
    tokenizer = Tokenizer(codecs[0], settings)
    self_check(tokenizer, *codecs[1:])
    logger.info("tokenizer %s loaded and checked in %.2f s", codecs[0].file.name, time.perf_counter() - start)
    return tokenizer


def _codecs(model_dir: Path, settings: TokenizerSettings) -> Iterator[Codec]:
    """The sentencepiece one first: it is the original, a tokenizer.json beside it a translation."""
    if (file := model_dir / "tokenizer.model").is_file():
        yield SentencePieceCodec(file, settings)
    if (file := model_dir / "tokenizer.json").is_file():
        yield JsonCodec(file, settings)
