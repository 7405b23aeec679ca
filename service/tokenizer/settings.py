"""What the JSON files beside a model's weights say about its tokenizer: added tokens, names, end ids, chat template."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class AddedToken:
    """A token found in text before the tokenizer's own splitting. Special ones mark turns and carry no text.

    `trims`: it would swallow spaces beside it or match whole words only.
    """

    content: str
    id: int
    special: bool
    trims: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer's settings of one model directory.

    `named`: text of bos_token, eos_token and so on, as chat templates see them. `special`: every special token's text;
    not all of them need have an id in `added`. `eos_ids`: the ids that end an answer. `add_bos`: a prompt should begin
    with bos_token.
    """

    directory: Path
    added: tuple[AddedToken, ...]
    named: dict[str, str]
    special: tuple[str, ...]
    eos_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None


def read_tokenizer_settings(directory: Path) -> TokenizerSettings:
    """Read the settings of `directory`. Raises ConfigurationError for a file that is missing or makes no sense."""
    # tokenizer_config.json is the newer of the two and wins where both speak.
    config = _read(directory / "special_tokens_map.json") | _read(directory / "tokenizer_config.json")
    named = {name: text for name in _NAMED if (text := _text(config.get(name))) is not None}
    listed = config.get("additional_special_tokens") or []
    special = (*named.values(), *(text for item in listed if (text := _text(item)) is not None))
    return TokenizerSettings(
        directory=directory,
        added=tuple(_added_tokens(directory, config, frozenset(special))),
        named=named,
        special=tuple(dict.fromkeys(special)),
        eos_ids=_eos_ids(directory),
        add_bos=config.get("add_bos_token") is True,
        chat_template=_chat_template(directory, config),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} must hold a JSON object")
    return data


def _text(entry: object) -> str | None:
    """A token's text, which is written plainly or as {"content": ...}."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _added_tokens(directory: Path, config: dict[str, Any], special: frozenset[str]) -> Iterable[AddedToken]:
    try:
        for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
            content = entry["content"]
            yield AddedToken(
                content=content,
                id=int(token_id),
                special=content in special or bool(entry.get("special")),
                trims=any(entry.get(flag) for flag in ("lstrip", "rstrip", "single_word")),
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = directory / "tokenizer_config.json"
        raise ConfigurationError(f"added_tokens_decoder in {path} is not a table of tokens by id: {error}") from error


def _eos_ids(directory: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        value = _read(directory / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if ids and all(type(item) is int for item in ids):
            return tuple(dict.fromkeys(ids))
        raise ConfigurationError(f"eos_token_id in {directory / name} must be an id or a list of ids, not {value!r}")
    raise ConfigurationError(f"neither generation_config.json nor config.json in {directory} has an eos_token_id")


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The template's source; of several named ones "default". None if the checkpoint brings none."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {item.get("name"): item.get("template") for item in template}.get("default")
    if template is not None and not isinstance(template, str):
        raise ConfigurationError(f"chat_template in {directory / 'tokenizer_config.json'} must be text")
    return template
