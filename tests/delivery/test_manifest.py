"""The manifest by itself: what its digest names, what it survives, what it is not believed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.delivery import manifest as manifests
from service.delivery.disk.durable import write_atomically
from service.delivery.manifest import FileRecord, Manifest

RECORD = FileRecord("config.json", 10, "a" * 64, 123, listed=True)
MANIFEST = Manifest("modelscope", "owner/model", "master", "c0ffee", "2026-01-01T00:00:00+00:00", "test", (RECORD,))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@given(
    st.lists(st.builds(FileRecord, NAMES, st.integers(0), st.just("b" * 64), st.integers(0), st.booleans()), min_size=1)
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, files: list[FileRecord]) -> None:
    directory = tmp_path_factory.mktemp("model")
    manifest = replace(MANIFEST, files=tuple(files))
    manifest.write(directory)
    assert manifests.read(directory) == manifest


@pytest.mark.parametrize(
    "change", [{"size": 11}, {"sha256": "b" * 64}, {"path": "config2.json"}], ids=["size", "hash", "name"]
)
def test_the_digest_names_the_content(change: dict[str, object]) -> None:
    changed = replace(MANIFEST, files=(replace(RECORD, **change),))  # type: ignore[arg-type]
    assert changed.digest != MANIFEST.digest


@pytest.mark.parametrize("change", ["source", "repo", "revision", "commit", "time", "tool"])
def test_the_digest_does_not_name_the_origin(change: str) -> None:
    assert replace(MANIFEST, **{change: "other"}).digest == MANIFEST.digest  # type: ignore[arg-type]
    assert MANIFEST.with_times({"config.json": 9}).digest == MANIFEST.digest


def test_the_order_of_files_does_not_matter() -> None:
    other = replace(RECORD, path="z.json")
    assert replace(MANIFEST, files=(RECORD, other)).digest == replace(MANIFEST, files=(other, RECORD)).digest


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"digest": "0" * 64},
        {"files": []},
        {"files": [{"path": "../config.json", "size": 1, "sha256": "a", "mtime_ns": 1, "listed": True}]},
        {"files": [{"path": "config.json"}]},
        {"surprise": 1},
    ],
    ids=["another format", "another digest", "no files", "a file outside", "half a record", "an unknown key"],
)
def test_a_manifest_that_cannot_be_right_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    MANIFEST.write(tmp_path)
    file = tmp_path / manifests.NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert manifests.read(tmp_path) is None
    assert "is damaged and is ignored" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "null", '"text"', "[]", "7", "{}", pytest.param("[" * 100_000, id="lists without an end")]
)
def test_a_manifest_that_is_none_at_all_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / manifests.NAME).write_text(text)
    assert manifests.read(tmp_path) is None
    assert "is damaged and is ignored" in caplog.text


def test_no_directory_has_no_manifest(tmp_path: Path) -> None:
    assert manifests.read(tmp_path / "missing") is None
    (tmp_path / "file").touch()
    assert manifests.read(tmp_path / "file") is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file], "and nothing beside it"


def test_what_is_unlisted_is_said(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, files=(RECORD, replace(RECORD, path="b.json", listed=False)))
    assert manifest.unlisted == ["b.json"]
    assert manifest.total_bytes == 20
    assert manifest.is_of("modelscope", "owner/model", "master")
    assert not manifest.is_of("huggingface", "owner/model", "master")
