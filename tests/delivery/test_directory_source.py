"""INTERNLM_SOURCE=dir: a model somebody carried there is examined, hashed once, and watched from then on."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from tests.support.download_process import Outcome, download
from tests.support.fake_hub import FakeHub
from tests.support.model_files import SHARDS, UNWANTED, make_repository, wanted_files

FIRST, SECOND = SHARDS


def verify(model_dir: Path, *arguments: str, **environment: str) -> Outcome:
    return download(model_dir, None, *arguments, INTERNLM_SOURCE="dir", **environment)


def header_of(tensors: dict[str, object]) -> bytes:
    body = json.dumps(tensors).replace("Infinity", "1e999").encode()
    return struct.pack("<Q", len(body)) + body


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "model")


def test_a_whole_model_is_adopted_and_recorded(carried: Path) -> None:
    outcome = verify(carried)
    assert outcome.code == 0, outcome.log
    manifest = manifests.read(carried)
    assert manifest
    assert {file.path: file.sha256 for file in manifest.files if file.path not in UNWANTED} == wanted_files(carried)
    assert manifest.source == "dir"
    assert all((carried / name).exists() for name in UNWANTED), "nothing of the operator's is removed"


def test_a_model_in_a_single_file_is_adopted(carried: Path) -> None:
    (carried / "model.safetensors.index.json").unlink()
    (carried / SECOND).unlink()
    (carried / FIRST).rename(carried / "model.safetensors")
    assert verify(carried).code == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("._config.json", b"\0\5\x16\7\0\2\0\0Mac OS X        ", id="a Mac's notes on a file"),
        pytest.param("evaluation.json", b"[1]", id="a list that nobody reads"),
        pytest.param("consolidated.safetensors", b"", id="the weights in a format that nobody reads"),
    ],
)
def test_what_no_server_reads_keeps_no_model_from_being_adopted(carried: Path, name: str, content: bytes) -> None:
    (carried / name).write_bytes(content)
    outcome = verify(carried)
    assert outcome.code == 0, outcome.log
    manifest = manifests.read(carried)
    assert manifest
    assert not [file.path for file in manifest.files if file.path.startswith(".")]


def test_of_a_kind_that_is_not_served_here_only_damage_is_refused(tmp_path: Path) -> None:
    """Another server may know its tokenizer, and where it has its weights."""
    other = make_repository(tmp_path / "model", model_type="qwen2")
    for name in ("tokenizer.model", "model.safetensors.index.json"):
        (other / name).unlink()
    assert verify(other).code == 0
    (other / manifests.NAME).unlink()
    os.truncate(other / FIRST, 2000)
    assert "its header says" in verify(other).last_line


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        pytest.param(lambda d: (d / SECOND).unlink(), f"names {SECOND}, which", id="a missing shard"),
        pytest.param(lambda d: (d / "config.json").unlink(), "no config.json", id="no configuration"),
        pytest.param(lambda d: os.truncate(d / FIRST, 2000), "its header says", id="a truncated shard"),
        pytest.param(lambda d: os.truncate(d / FIRST, 4), "too short", id="a shard shorter than a header"),
        pytest.param(lambda d: (d / FIRST).write_text("<html>" * 9), "does not begin", id="a web page for a shard"),
        pytest.param(
            lambda d: (d / FIRST).write_bytes(struct.pack("<Q", 4) + b"[1]\n"),
            "damaged",
            id="a list for a header",
        ),
        pytest.param(
            lambda d: (d / FIRST).write_bytes(
                header_of({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 1e999]}})
            ),
            "damaged",
            id="a header with a number that no file has",
        ),
        pytest.param(
            lambda d: (d / FIRST).write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
            "damaged",
            id="a header of lists without an end",
        ),
        pytest.param(lambda d: (d / "config.json").write_text("{"), "is no JSON", id="half a configuration"),
        pytest.param(lambda d: (d / "config.json").write_text("[]"), "no JSON object", id="a list for a configuration"),
        pytest.param(
            lambda d: (d / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b"}})),
            "no *.safetensors weights",
            id="an index that leads out of the directory",
        ),
        pytest.param(
            lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": null, "b": ["x"]}}'),
            "no *.safetensors weights",
            id="an index that names no files",
        ),
        pytest.param(
            lambda d: (d / "model.safetensors.index.json").unlink(),
            "neither model.safetensors.index.json nor model.safetensors",
            id="shards without an index",
        ),
        pytest.param(
            lambda d: (d / "tokenizer.model").unlink(),
            "neither tokenizer.model nor tokenizer.json",
            id="no tokenizer",
        ),
        pytest.param(lambda d: (d / "config.json").write_text("[" * 100_000), "is no JSON", id="lists without an end"),
        pytest.param(shutil.rmtree, "is not a directory", id="no directory"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(carried: Path, damage: object, complaint: str) -> None:
    assert callable(damage)
    damage(carried)
    outcome = verify(carried)
    assert outcome.code == 1
    assert complaint in outcome.last_line
    assert "copy " in outcome.last_line, "there is no hub that could be at fault"
    assert "ENDPOINT" not in outcome.last_line
    assert manifests.read(carried) is None


def test_damage_under_the_manifest_is_named_and_not_adopted(carried: Path) -> None:
    assert verify(carried).code == 0
    (carried / SECOND).unlink()
    outcome = verify(carried)
    assert outcome.code == 1
    assert f"{SECOND} is missing" in outcome.last_line
    (carried / SECOND).write_bytes(b"x" * 10)
    assert f"{SECOND} has 10 of " in (again := verify(carried).last_line)
    assert "copy that file again" in again


def test_a_volume_that_was_downloaded_elsewhere_keeps_its_origin(hub: FakeHub, model_dir: Path, tmp_path: Path) -> None:
    assert download(model_dir, hub).code == 0
    copy = tmp_path / "air-gap"
    shutil.copytree(model_dir, copy, copy_function=shutil.copy)
    outcome = verify(copy, "--verify")
    assert outcome.code == 0, outcome.log
    manifest = manifests.read(copy)
    assert manifest
    assert (manifest.source, manifest.repo) == ("modelscope", hub.repo)


def test_a_digest_that_was_asked_for_must_be_there(carried: Path) -> None:
    outcome = verify(carried, INTERNLM_MODEL_DIGEST="0" * 64)
    assert outcome.code == 1
    assert "digest: the model's digest is " in outcome.last_line
    assert manifests.read(carried) is None
    digest = outcome.last_line.split("digest is ")[1][:64]
    assert verify(carried, INTERNLM_MODEL_DIGEST=digest).code == 0
