"""Which listings are followed. The hostile ones go through a real hub elsewhere; here are the borders."""

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.catalog import MAX_ENTRIES, Catalog, RemoteFile, check_name, is_wanted, read_listing

MODEL = [{"path": "config.json", "size": 10}, {"path": "model.safetensors", "size": 100, "sha256": "A" * 64}]


def listing(*extra: dict[str, Any]) -> Catalog:
    return read_listing([*MODEL, *extra], "c0ffee")


def test_wanted_files_are_kept_in_order_with_their_hashes() -> None:
    catalog = listing({"path": "model.py", "size": 5}, {"path": "onnx/model.safetensors", "size": 7})
    assert [file.path for file in catalog.files] == ["config.json", "model.safetensors"]
    assert catalog.files[1].sha256 == "a" * 64
    assert (catalog.total_bytes, catalog.commit) == (110, "c0ffee")


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "LICENSE"])
def test_what_a_server_reads_is_wanted(name: str) -> None:
    assert is_wanted(name)


@pytest.mark.parametrize(
    "name",
    ["modeling.py", "pytorch_model.bin", "x.pkl", "LICENSE.py", "a/config.json", ".gitattributes", "x.PY"],
)
def test_code_pickles_and_folders_are_not_wanted(name: str) -> None:
    assert not is_wanted(name)


@given(st.text())
def test_a_name_that_is_accepted_stays_in_its_directory(name: str) -> None:
    try:
        accepted = check_name(name)
    except DeliveryFailed:
        return
    path = PurePosixPath("/model") / accepted
    assert path.is_relative_to("/model")
    assert ".." not in path.parts
    assert not accepted.startswith((".internlm-", "/"))
    assert len(path.name.encode()) + len(".incomplete") <= 255


def test_as_many_entries_as_a_model_can_have_are_read() -> None:
    extra = [{"path": f"figures/{n}.png", "size": 1} for n in range(MAX_ENTRIES - len(MODEL))]
    listing(*extra)
    with pytest.raises(DeliveryFailed, match=str(MAX_ENTRIES)):
        listing(*extra, {"path": "one-more.png", "size": 1})


@pytest.mark.parametrize("twin", ["ﬁle.json", "FILE.json", "file.json"])
def test_names_that_some_file_system_takes_for_one_are_refused(twin: str) -> None:
    with pytest.raises(DeliveryFailed, match="more than once") as raised:
        listing({"path": "file.json", "size": 1}, {"path": twin, "size": 1})
    assert raised.value.cause is Cause.BAD_LISTING


def test_identity_changes_with_the_content_the_hub_means() -> None:
    file = RemoteFile("a.json", 1, sha256="a" * 64, version="one")
    assert file.identity == RemoteFile("b.json", 1, sha256="a" * 64, version="one").identity
    assert file.identity != RemoteFile("a.json", 1, sha256="b" * 64, version="one").identity
    assert file.checkable
    assert not RemoteFile("a.json", 1, version="one").checkable
