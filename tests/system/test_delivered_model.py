"""The whole path once: a hub, a download, a manifest, a server on that directory, and an answer that proves it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from tests.support.download_process import download
from tests.support.fake_hub import FakeHub, running_hub
from tests.system.conftest import SERVE, Launch

REPO = "owner/smollm2"


@pytest.fixture
def hub(smollm2_dir: Path) -> Iterator[FakeHub]:
    """A hub that has the real small model in InternLM3's layout."""
    with running_hub(smollm2_dir, REPO) as running:
        yield running


def test_what_was_downloaded_is_what_answers(hub: FakeHub, launch: Launch, tmp_path: Path) -> None:
    model_dir = tmp_path / "model"
    outcome = download(model_dir, hub)
    assert outcome.code == 0, outcome.log
    manifest = manifests.read(model_dir)
    assert manifest
    server = launch(SERVE, MODEL_DIR=str(model_dir))
    server.until_ready()
    answer = server.ask("What is the capital of France?").json()
    assert "Paris" in answer["response"]
    assert answer["status"] == 200
    identity = server.get().json()  # type: ignore[union-attr]
    assert (identity["manifest"], identity["revision"]) == (manifest.digest, hub.commit)
    assert identity["model"] == REPO
    labels = f'manifest="{manifest.digest}",model="{REPO}",revision="{hub.commit}"'
    assert f"internlm_model_info{{{labels}}} 1.0" in server.metrics()


def test_a_server_refuses_weights_that_are_not_what_the_manifest_says(
    hub: FakeHub, launch: Launch, tmp_path: Path
) -> None:
    model_dir = tmp_path / "model"
    assert download(model_dir, hub).code == 0
    with (model_dir / "model.safetensors").open("r+b") as weights:
        weights.truncate(1_000_000)
    server = launch(SERVE, MODEL_DIR=str(model_dir))
    failed = server.wait(lambda: (response := server.get()) and "model.safetensors has 1,000,000 of" in response.text)
    assert failed
    assert server.get().status_code == 503  # type: ignore[union-attr]
