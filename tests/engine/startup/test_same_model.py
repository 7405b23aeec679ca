"""An engine loads the model that its web server has named, or nothing: also where another one was brought meanwhile."""

import hashlib
from pathlib import Path

import pytest

from service.delivery.local import LocalModel
from service.delivery.manifest import NAME, FileRecord, Manifest
from service.engine.startup import build as building
from service.engine.startup.build import build_core
from service.errors import ConfigurationError
from service.readiness import engine_config
from service.settings import Settings
from tests.support.checkpoints import Shape, write_checkpoint


def delivered(directory: Path) -> Manifest:
    """A manifest of what lies there, as a download leaves it."""
    records = []
    for file in sorted(each for each in directory.iterdir() if each.name != NAME):
        content, times = file.read_bytes(), file.stat()
        records.append(
            FileRecord(file.name, len(content), hashlib.sha256(content).hexdigest(), times.st_mtime_ns, listed=True)
        )
    manifest = Manifest("modelscope", "a/b", "master", None, "2030-01-01T00:00:00+00:00", "test", tuple(records))
    manifest.write(directory)
    return manifest


def load(model: LocalModel) -> None:
    build_core(engine_config(Settings(device="cpu", threads=1), model), lambda message: None)


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    write_checkpoint(tmp_path, Shape(max_positions=512))
    return LocalModel(tmp_path, "model", delivered(tmp_path))


def test_what_the_server_found_is_loaded_again_and_again(model: LocalModel) -> None:
    load(model)
    (model.directory / "README.md").write_text("of nobody's interest")
    load(model)


def test_another_model_in_its_place_is_refused(model: LocalModel) -> None:
    """Its tokenizer is not the one that the web server reads with, and its name is not the one that it says."""
    write_checkpoint(model.directory, Shape(max_positions=256))
    other = delivered(model.directory).digest[:12]
    with pytest.raises(ConfigurationError, match=rf"now holds another one \({other}\): restart the server"):
        load(model)


def test_a_model_that_is_being_replaced_is_refused(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read, and also where it began while it was."""

    def replaced(*arguments: object) -> None:
        (model.directory / NAME).unlink()

    monkeypatch.setitem(building._BUILDERS, "native", replaced)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="now holds none that is whole"):
            load(model)


def test_a_directory_without_a_manifest_is_the_operators_own(model: LocalModel) -> None:
    (model.directory / NAME).unlink()
    load(LocalModel(model.directory, "model"))
