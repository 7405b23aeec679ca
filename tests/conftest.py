"""What every test gets: an environment without our settings."""

import os

import pytest

from service.settings import PREFIX
from tests.support.smollm2 import smollm2_dir as smollm2_dir


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
