"""Where the model comes from, where it lies, and what both containers are told of it."""

import pytest

from tests.support.helm import Values, render

HUB = {"repository": "someone/small", "endpoint": "http://hub.internal:8080", "revision": "abc123", "size": "300M"}


@pytest.mark.parametrize(
    ("model", "source", "repository", "revision"),
    [
        ({}, "modelscope", "Shanghai_AI_Laboratory/internlm3-8b-instruct", "master"),
        ({"source": "huggingface"}, "huggingface", "internlm/internlm3-8b-instruct", "main"),
        ({"repository": "a/b"}, "modelscope", "a/b", "master"),
    ],
)
def test_the_init_container_fetches_from_a_hub(model: Values, source: str, repository: str, revision: str) -> None:
    manifests = render({"model": model})
    settings = manifests.settings
    assert manifests.download["args"] == ["download"]
    assert settings["INTERNLM_SOURCE"] == source
    assert settings["INTERNLM_MODEL_REPO"] == repository
    assert settings["INTERNLM_REVISION"] == revision
    prefix = "huggingface--" if source == "huggingface" else ""
    assert settings["INTERNLM_MODEL_DIR"] == f"/models/{prefix}{repository.replace('/', '--')}"
    assert settings["INTERNLM_MODEL_ID"] == repository.split("/")[1]


@pytest.mark.parametrize(
    ("model", "directory"),
    [
        ({"repository": "a/b", "revision": "v1"}, "a--b@v1"),
        ({"repository": "a/b", "revision": "refs/pr/1"}, "a--b@refs~pr~1"),
        ({"repository": "a/b", "revision": "v1", "source": "huggingface"}, "huggingface--a--b@v1"),
        ({"repository": "a/b", "revision": "v1", "path": "mine"}, "mine"),
    ],
)
def test_another_revision_has_another_directory(model: Values, directory: str) -> None:
    """So that the old one is whole until the new one is."""
    settings = render({"model": model}).settings
    assert settings["INTERNLM_MODEL_DIR"] == f"/models/{directory}"
    assert settings["INTERNLM_REVISION"] == model["revision"]
    assert settings["INTERNLM_MODEL_ID"] == model.get("path", "b")


def test_a_private_hub_gets_its_token_as_a_file_that_only_the_init_container_sees() -> None:
    manifests = render({"model": HUB | {"tokenSecret": {"name": "hub", "key": "access"}}})
    assert manifests.settings["INTERNLM_HUB_ENDPOINT"] == "http://hub.internal:8080"
    assert manifests.settings["INTERNLM_HUB_TOKEN_FILE"] == "/etc/internlm-chat/hub/access"
    secret = {"secretName": "hub", "items": [{"key": "access", "path": "access"}]}
    assert {"name": "hub-token", "secret": secret} in manifests.pod["volumes"]
    mounts = [{mount["name"] for mount in c["volumeMounts"]} for c in (manifests.download, manifests.server)]
    assert "hub-token" in mounts[0]
    assert "hub-token" not in mounts[1]


def test_only_the_init_container_can_write_the_model() -> None:
    manifests = render()
    download, server = (
        next(mount for mount in container["volumeMounts"] if mount["name"] == "model")
        for container in (manifests.download, manifests.server)
    )
    assert download == {"name": "model", "mountPath": "/models"}
    assert server == {"name": "model", "mountPath": "/models", "readOnly": True}


def test_cpu_mode_serves_the_model_in_the_image_and_needs_no_claim() -> None:
    manifests = render({"mode": "cpu"})
    assert not manifests.all("PersistentVolumeClaim")
    assert "initContainers" not in manifests.pod
    assert {volume["name"] for volume in manifests.pod["volumes"]} == {"tmp", "cache"}
    assert not {key for key in manifests.settings if "MODEL" in key or "SOURCE" in key}


def test_cpu_mode_serves_a_named_model_from_a_hub() -> None:
    manifests = render({"mode": "cpu", "model": HUB | {"source": "modelscope"}})
    assert manifests.settings["INTERNLM_MODEL_DIR"] == "/models/someone--small@abc123"
    assert manifests.download["image"].endswith("/downloader:0.1.0")


def test_an_existing_volume_is_verified_and_asks_no_hub() -> None:
    manifests = render(
        {"model": {"source": "volume", "path": "mine/v2"}, "storage": {"existingClaim": "models"}, "airGap": True}
    )
    settings = manifests.settings
    assert settings["INTERNLM_SOURCE"] == "dir"
    assert settings["INTERNLM_MODEL_DIR"] == "/models/mine/v2"
    assert settings["INTERNLM_MODEL_ID"] == "v2"
    assert not {"INTERNLM_MODEL_REPO", "INTERNLM_REVISION", "INTERNLM_HUB_ENDPOINT"} & set(settings)
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in manifests.pod["volumes"]


def test_what_was_fetched_online_is_found_again_without_a_path() -> None:
    online = render({"storage": {"existingClaim": "models"}})
    offline = render({"model": {"source": "volume"}, "storage": {"existingClaim": "models"}, "airGap": True})
    assert online.settings["INTERNLM_MODEL_DIR"] == offline.settings["INTERNLM_MODEL_DIR"]


def test_a_read_only_volume_is_mounted_read_only_everywhere() -> None:
    storage = {"existingClaim": "models", "accessMode": "ReadOnlyMany"}
    manifests = render({"model": {"source": "volume"}, "storage": storage, "replicas": 3})
    for container in (manifests.download, manifests.server):
        assert next(m for m in container["volumeMounts"] if m["name"] == "model")["readOnly"] is True
    claim = {"claimName": "models", "readOnly": True}
    assert {"name": "model", "persistentVolumeClaim": claim} in manifests.pod["volumes"], "some disks attach so or not"


def test_an_oci_image_serves_as_the_model_volume() -> None:
    manifests = render({"model": {"source": "image", "image": "r.internal/model@sha256:1", "path": "weights"}})
    image = {"reference": "r.internal/model@sha256:1", "pullPolicy": "IfNotPresent"}
    assert {"name": "model", "image": image} in manifests.pod["volumes"]
    assert manifests.settings["INTERNLM_MODEL_DIR"] == "/models/weights"
    assert "initContainers" not in manifests.pod
    assert not manifests.all("PersistentVolumeClaim")
    assert render({"model": {"source": "image", "image": "x"}}).settings["INTERNLM_MODEL_DIR"] == "/models"


@pytest.mark.parametrize("source", ["volume", "image"])
def test_the_served_name_can_be_chosen(source: str) -> None:
    values = {"model": {"source": source, "image": "x", "name": "ours"}, "storage": {"existingClaim": "models"}}
    assert render(values).settings["INTERNLM_MODEL_ID"] == "ours"
    assert render({"mode": "cpu", "model": {"name": "ours"}}).settings["INTERNLM_MODEL_ID"] == "ours"
