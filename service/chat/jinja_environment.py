"""The Jinja that chat templates are written for: transformers' names and settings, in a sandbox."""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.errors import ConfigurationError


def compile_template(source: str) -> Template:
    """Compile a chat template. Raises ConfigurationError for bad syntax.

    Same settings as `apply_chat_template` of transformers 5: block trimming, loop controls, `raise_exception`,
    `strftime_now` and a `tojson` that does not escape HTML.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols"],
        autoescape=False,  # prompts are not HTML
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ConfigurationError(f"the chat template cannot be compiled: {error}") from error


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
