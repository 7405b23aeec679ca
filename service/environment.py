"""Reads settings from the environment, strictly: a variable with our prefix that is no setting is an error."""

import os
import re
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from service.download_settings import DownloadSettings
from service.errors import ConfigurationError
from service.settings import PREFIX, Settings

_USER = re.compile(r"[^/\s'\"]*@")
"""Whom an address names, perhaps with a password, also where it is none: the log is not the place for one."""

AnySettings = TypeVar("AnySettings", bound=BaseSettings)


def load_settings() -> Settings:
    """The server's settings from this process's environment; raises ConfigurationError naming the variable."""
    return load(Settings)


def load_download_settings() -> DownloadSettings:
    """The download's settings from this process's environment; raises ConfigurationError naming the variable."""
    return load(DownloadSettings)


def load(kind: type[AnySettings]) -> AnySettings:
    """Settings of one kind from this process's environment.

    Raises ConfigurationError for an unknown `INTERNLM_*` name or a value out of bounds, naming the variable.
    """
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known_variables())
    if unknown:
        raise ConfigurationError(f"unknown setting {', '.join(unknown)}; known: {', '.join(known_variables())}")
    try:
        return kind()
    except ValidationError as error:
        raise ConfigurationError("; ".join(_complaint(e) for e in error.errors())) from None  # type: ignore[arg-type]


def known_variables() -> list[str]:
    """Every environment variable that is a setting: the server's, then those only the download has.

    Both live in one environment (the chart gives it to both containers), so each ignores the other's.
    """
    return [PREFIX + name.upper() for name in dict.fromkeys([*Settings.model_fields, *DownloadSettings.model_fields])]


def _complaint(error: dict[str, object]) -> str:
    location = error["loc"]
    assert isinstance(location, tuple)
    if not location:  # of several settings together; the sentence names them
        return str(error["msg"])
    return f"{PREFIX}{str(location[0]).upper()}={_USER.sub('…@', repr(error['input']))}: {error['msg']}"
