"""The server finds its model, or says which setting would give it one."""

from pathlib import Path

import pytest

from service.delivery import local
from service.delivery.disk import usage
from service.delivery.local import SMALL_MODEL_ID, find_model
from service.errors import ConfigurationError
from service.settings import Settings
from tests.support.download_process import download
from tests.support.fake_hub import FakeHub


def silent(phase: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "has_gpu", lambda: False)


def test_without_model_and_gpu_the_small_real_model_is_served(smollm2_dir: Path, no_gpu: None) -> None:
    settings = Settings(cache_dir=smollm2_dir.parent)
    assert find_model(settings, silent) == local.LocalModel(smollm2_dir, SMALL_MODEL_ID)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_with_a_gpu_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(local, "has_gpu", lambda: True)
    with pytest.raises(ConfigurationError, match="INTERNLM_MODEL_DIR is not set"):
        find_model(Settings(device=device), silent)


def test_a_gpu_can_be_left_alone(monkeypatch: pytest.MonkeyPatch, smollm2_dir: Path) -> None:
    monkeypatch.setattr(local, "has_gpu", lambda: True)
    assert find_model(Settings(device="cpu", cache_dir=smollm2_dir.parent), silent).directory == smollm2_dir


def test_a_directory_without_a_model_is_refused_before_anything_is_read(tmp_path: Path, no_gpu: None) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        find_model(Settings(model_dir=tmp_path), silent)


def test_a_model_without_a_manifest_is_served_under_its_directorys_name(smollm2_dir: Path, no_gpu: None) -> None:
    found = find_model(Settings(model_dir=smollm2_dir), silent)
    assert (found.id, found.manifest) == (smollm2_dir.name, None)


def test_a_served_model_is_held_so_that_it_does_not_give_way(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    with usage.unused(model_dir):
        pass
    find_model(Settings(model_dir=model_dir, engine="fake"), silent)
    with pytest.raises(usage.InUseError), usage.unused(model_dir):
        pass


def test_the_operator_names_the_model(smollm2_dir: Path, no_gpu: None) -> None:
    assert find_model(Settings(model_dir=smollm2_dir, model_id="ours"), silent).id == "ours"
