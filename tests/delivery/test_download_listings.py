"""Hubs that lie, listings without hashes, revisions that move, and models that are exchanged."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.delivery import manifest as manifests
from service.delivery.hubs.catalog import PARTIAL_SUFFIX
from tests.support.download_process import Download, assert_complete, download, wait_until
from tests.support.fake_hub import FakeHub, Fault, running_hub
from tests.support.model_files import SHARDS, UNWANTED, make_repository, sha256_of, wanted_files, write_shard

FIRST, SECOND = SHARDS
SHA = "a" * 64


def entry(path: object, size: object = 10, sha256: object = SHA) -> dict[str, Any]:
    """As ModelScope lists it, and as Hugging Face does, in one."""
    large = {"lfs": {"oid": sha256, "size": size}}
    return {"Path": path, "Type": "blob", "Size": size, "Sha256": sha256, "path": path, "type": "file", **large}


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(entry("../evil.json"), id="a path that leaves the directory"),
        pytest.param(entry("a/../../evil.json"), id="a path that leaves it on a detour"),
        pytest.param(entry("/etc/evil.json"), id="an absolute path"),
        pytest.param(entry("..\\evil.json"), id="a backslash"),
        pytest.param(entry("evil\x00.json"), id="a NUL"),
        pytest.param(entry("evil\n.json"), id="a line feed"),
        pytest.param(entry("."), id="a dot"),
        pytest.param(entry("a//evil.json"), id="an empty part"),
        pytest.param(entry("x" * 300 + ".json"), id="a name longer than file systems have"),
        pytest.param(entry(".internlm-manifest.json"), id="our manifest's name"),
        pytest.param(entry(".INTERNLM-manifest.json"), id="our manifest's name in capitals"),
        pytest.param(entry(None), id="no path"),
        pytest.param(entry(7), id="a number for a path"),
        pytest.param(entry("Config.JSON".replace("JSON", "json")), id="a name that differs in case only"),
        pytest.param(entry("config.json"), id="a name twice"),
        pytest.param(entry("evil.json", -1), id="a negative size"),
        pytest.param(entry("evil.json", 2**60), id="an absurd size"),
        pytest.param(entry("evil.json", "10"), id="a text for a size"),
        pytest.param(entry("evil.json", 10, "xyz"), id="no hash for a hash"),
        pytest.param(entry("evil.json", 10, SHA + "00"), id="a hash that is too long"),
        pytest.param("not an object", id="an entry of another shape"),
    ],
)
def test_a_lying_listing_is_refused_and_nothing_is_fetched(
    hub: FakeHub, model_dir: Path, tmp_path: Path, lie: dict[str, Any]
) -> None:
    hub.extra_entries = [lie]
    refused_without_a_trace(hub, model_dir, tmp_path)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/evil.json", "config.json"])
def test_hugging_faces_listings_are_judged_alike(hub: FakeHub, model_dir: Path, tmp_path: Path, path: str) -> None:
    hub.extra_entries = [entry(path)]
    refused_without_a_trace(hub, model_dir, tmp_path, INTERNLM_SOURCE="huggingface")


def refused_without_a_trace(hub: FakeHub, model_dir: Path, tmp_path: Path, **environment: str) -> None:
    before = set(tmp_path.iterdir())
    outcome = download(model_dir, hub, **environment)
    assert outcome.code == 1
    assert "bad-listing: " in outcome.last_line or "bad-answer: " in outcome.last_line
    assert not hub.file_requests
    assert set(tmp_path.iterdir()) - before == {model_dir}
    assert {path.name for path in model_dir.iterdir()} == {".internlm-download"}


@pytest.mark.parametrize("missing", ["config.json", *SHARDS])
def test_a_repository_that_holds_no_model_is_refused(hub: FakeHub, model_dir: Path, missing: str) -> None:
    (hub.directory / missing).unlink()
    if missing in SHARDS:
        for shard in SHARDS:
            (hub.directory / shard).unlink(missing_ok=True)
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert "no config.json or no *.safetensors" in outcome.last_line


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [
        pytest.param(lambda d: (d / SECOND).unlink(), f"names {SECOND}, which", id="a shard that was forgotten"),
        pytest.param(lambda d: (d / SECOND).write_bytes(b""), "too short", id="an empty shard"),
        pytest.param(lambda d: os.truncate(d / SECOND, 100_000), "its header says", id="a shard that was cut"),
        pytest.param(
            lambda d: (d / SECOND).write_text("version https://git-lfs.github.com/spec/v1\n"),
            "does not begin like a safetensors file",
            id="a pointer to a shard",
        ),
        pytest.param(lambda d: (d / "tokenizer.model").unlink(), "neither tokenizer.model nor", id="no tokenizer"),
    ],
)
def test_a_repository_that_is_not_whole_is_no_complete_model(
    hub: FakeHub, model_dir: Path, tmp_path: Path, flaw: Callable[[Path], object], complaint: str
) -> None:
    """The new server would find it out, and the old one is gone by then."""
    whole = shutil.copytree(hub.directory, tmp_path / "whole")
    flaw(hub.directory)
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert complaint in outcome.last_line
    assert "set INTERNLM_MODEL_REPO or INTERNLM_REVISION" in outcome.last_line
    assert manifests.read(model_dir) is None
    shutil.copytree(whole, hub.directory, dirs_exist_ok=True)
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)


def test_a_model_of_a_kind_that_is_not_served_here_is_brought_as_it_is(hub: FakeHub, model_dir: Path) -> None:
    """Another server may know its tokenizer, and where it has its weights."""
    make_repository(hub.directory, model_type="qwen2")
    for name in ("tokenizer.model", "model.safetensors.index.json"):
        (hub.directory / name).unlink()
    outcome = download(model_dir, hub)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)


def test_a_manifest_of_a_repository_that_was_not_whole_does_not_end_the_asking(hub: FakeHub, model_dir: Path) -> None:
    """As earlier versions wrote them; the hub may have mended it meanwhile."""
    assert download(model_dir, hub).code == 0
    manifest = manifests.read(model_dir)
    assert manifest
    (model_dir / "tokenizer.model").unlink()
    replace(manifest, files=tuple(f for f in manifest.files if f.path != "tokenizer.model")).write(model_dir)
    outcome = download(model_dir, hub)
    assert outcome.code == 0
    assert "no whole model: there is neither tokenizer.model nor" in outcome.log
    assert_complete(model_dir, hub.directory)


def test_a_listed_size_that_is_wrong_ends_without_a_manifest(hub: FakeHub, model_dir: Path) -> None:
    hub.extra_entries = [entry("extra.json", 10)]
    (hub.directory / "extra.json").write_text("{}" * 50)
    (hub.directory / "extra.json").rename(hub.directory / "figures" / "extra.json")
    outcome = download(model_dir, hub)
    assert outcome.code == 1
    assert manifests.read(model_dir) is None


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
@pytest.mark.parametrize("kind", ["symlink", "commit", "tree"])
def test_links_submodules_and_folders_of_a_repository_are_no_files(
    hub: FakeHub, model_dir: Path, source: str, kind: str
) -> None:
    hub.extra_entries = [entry("extra.json") | {"Type": kind, "type": kind}]
    assert download(model_dir, hub, INTERNLM_SOURCE=source).code == 0
    assert_complete(model_dir, hub.directory)


def test_code_and_pickles_are_never_fetched(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    asked = {request.query["FilePath"] for request in hub.file_requests}
    assert asked == set(wanted_files(hub.directory))
    assert not asked & set(UNWANTED)


def test_files_without_a_listed_hash_are_hashed_on_arrival_and_marked(hub: FakeHub, model_dir: Path) -> None:
    hub.hashes = False
    outcome = download(model_dir, hub)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    manifest = manifests.read(model_dir)
    assert manifest
    assert set(manifest.unlisted) == set(wanted_files(hub.directory))
    assert "the hub lists no hash for" in outcome.log


def test_wrong_bytes_without_a_listed_hash_are_marked_and_refused_where_a_digest_is_set(
    hub: FakeHub, model_dir: Path, tmp_path: Path
) -> None:
    assert download(tmp_path / "honest", hub).code == 0
    honest = manifests.read(tmp_path / "honest")
    assert honest
    hub.hashes = False
    hub.faults = [Fault("corrupt", path=FIRST)]
    assert download(model_dir, hub).code == 0
    wrong = manifests.read(model_dir)
    assert wrong
    assert FIRST in wrong.unlisted, "the manifest does not claim that this is what was meant"
    assert {f.path: f.sha256 for f in wrong.files}[FIRST] == sha256_of(model_dir / FIRST)
    pinned = {"INTERNLM_MODEL_DIGEST": honest.digest}
    outcome = download(model_dir, hub, **pinned)
    assert outcome.code == 1
    assert "download failed: digest: " in outcome.last_line
    hub.faults = []
    hub.hashes = True
    assert download(model_dir, hub, **pinned).code == 0
    assert_complete(model_dir, hub.directory)


def test_bytes_of_unknown_origin_are_not_resumed_without_a_listed_hash(hub: FakeHub, model_dir: Path) -> None:
    hub.hashes = False
    model_dir.mkdir()
    (model_dir / (FIRST + PARTIAL_SUFFIX)).write_bytes(b"\0" * 1000)
    (model_dir / SECOND).write_bytes(b"\0" * (hub.directory / SECOND).stat().st_size)
    assert download(model_dir, hub).code == 0
    assert_complete(model_dir, hub.directory)
    assert not any("range" in request.headers for request in hub.file_requests)


@pytest.mark.parametrize("hashes", [True, False], ids=["with hashes", "without hashes"])
def test_a_revision_that_moves_meanwhile_ends_with_the_files_of_one_listing(
    hub: FakeHub, model_dir: Path, hashes: bool
) -> None:
    hub.hashes = hashes
    hub.faults = [Fault("trickle", 150_000, FIRST, 1)]
    running = Download(model_dir, hub, INTERNLM_DOWNLOAD_BUDGET="30")
    wait_until(lambda: (model_dir / "config.json").exists() and (model_dir / SECOND).exists())
    write_shard(hub.directory / SECOND, 200_000, "layer.1", seed=77)
    hub.commit = "beef" * 10
    outcome = running.wait()
    assert outcome.code == 0, outcome.log
    assert "moved: the revision changed" in outcome.log
    assert_complete(model_dir, hub.directory)
    manifest = manifests.read(model_dir)
    assert manifest
    assert manifest.commit == hub.commit


def test_a_complete_model_stays_when_its_branch_moves_on(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    before = sha256_of(model_dir / SECOND)
    write_shard(hub.directory / SECOND, 200_000, "layer.1", seed=77)
    assert download(model_dir, hub).code == 0
    assert sha256_of(model_dir / SECOND) == before


def test_another_revision_replaces_the_model_and_removes_what_it_has_no_use_for(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    kept = (model_dir / SECOND).stat().st_ino
    (model_dir / "notes.txt").write_text("the operator's own")
    (model_dir / f"old.safetensors{PARTIAL_SUFFIX}").write_text("of a former attempt")
    write_shard(hub.directory / FIRST, 100_000, "layer.0", seed=78)
    (hub.directory / "generation_config.json").unlink()
    hub.revisions.add("v2")
    outcome = download(model_dir, hub, INTERNLM_REVISION="v2")
    assert outcome.code == 0, outcome.log
    assert (model_dir / "notes.txt").read_text() == "the operator's own"
    (model_dir / "notes.txt").unlink()
    assert_complete(model_dir, hub.directory)
    assert (model_dir / SECOND).stat().st_ino == kept, "an unchanged shard is not fetched again"


def test_the_former_manifest_is_gone_before_the_first_file_changes(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub).code == 0
    make_repository(hub.directory, seed=9)
    hub.revisions.add("v2")
    hub.faults = [Fault("status", 403, SECOND)]
    assert download(model_dir, hub, INTERNLM_REVISION="v2").code == 1
    assert manifests.read(model_dir) is None


def test_hugging_face_files_are_asked_for_by_commit(hub: FakeHub, model_dir: Path) -> None:
    assert download(model_dir, hub, INTERNLM_SOURCE="huggingface").code == 0
    assert all(f"/resolve/{hub.commit}/" in request.path for request in hub.file_requests)
    manifest = manifests.read(model_dir)
    assert manifest
    assert (manifest.revision, manifest.commit, manifest.unlisted) == ("main", hub.commit, [])


def test_a_listing_of_many_pages_is_read_to_its_end(hub: FakeHub, model_dir: Path) -> None:
    hub.page_size = 2
    assert download(model_dir, hub, INTERNLM_SOURCE="huggingface").code == 0
    assert_complete(model_dir, hub.directory)


def test_a_listing_that_goes_on_at_another_host_is_not_followed(hub: FakeHub, model_dir: Path) -> None:
    hub.page_size = 2
    with running_hub(hub.directory, hub.repo) as other:
        hub.storage = other.endpoint
        outcome = download(model_dir, hub, INTERNLM_SOURCE="huggingface")
        assert outcome.code == 1
        assert "bad-answer: " in outcome.last_line
        assert not other.requests


def test_the_digest_names_the_content_whatever_the_source(hub: FakeHub, tmp_path: Path) -> None:
    digests = set()
    for source in ("modelscope", "huggingface"):
        assert download(tmp_path / source, hub, INTERNLM_SOURCE=source).code == 0
        manifest = manifests.read(tmp_path / source)
        assert manifest
        digests.add(manifest.digest)
    assert len(digests) == 1
