"""Images are built where there is room, scanned as they are, and released only after tests and a clean scan."""

import re

import pytest

from tests.ci.workflows import jobs, place, step

IMAGES = jobs("images.yml")["image"]["steps"]
RELEASE = jobs("release.yml")
RELEASED = RELEASE["images"]["steps"]
CUTOFF = {"severity-cutoff": "high", "only-fixed": True}


def test_what_is_listed_is_the_archive_that_was_built() -> None:
    built = step(IMAGES, '-t "internlm-chat/$TARGET:ci"')["run"]
    (archive,) = re.findall(r"--output type=docker,dest=(\S+)", built)
    listing = step(IMAGES, "anchore/sbom-action")["with"]
    assert listing["image"] == f"docker-archive:{archive}", "syft takes what is before a colon for a kind of source"
    assert step(IMAGES, "anchore/scan-action")["with"] == {"sbom": listing["output-file"]} | CUTOFF
    assert place(IMAGES, "dest=image.tar") < place(IMAGES, "anchore/sbom-action") < place(IMAGES, "anchore/scan-action")


def test_the_downloaders_size_has_a_limit() -> None:
    measured = step(IMAGES, "-lt 200000000")
    assert measured["if"] == "matrix.target == 'downloader'"
    assert "pipefail" in measured["run"], "a build that fails halfway is small, too"


@pytest.mark.parametrize(("steps", "build"), [(IMAGES, "dest=image.tar"), (RELEASED, "docker/build-push-action")])
def test_room_is_made_before_the_cuda_image_is_built(steps: list[dict[str, object]], build: str) -> None:
    freed = step(steps, "sudo rm -rf")
    assert freed["if"] == "matrix.target == 'server'"
    assert freed["run"] == step(IMAGES, "sudo rm -rf")["run"]
    assert place(steps, "sudo rm -rf") < place(steps, build)


def test_a_release_waits_for_the_very_tests_of_every_push() -> None:
    every_push = jobs("ci.yml")["test"]
    assert RELEASE["test"] == every_push
    assert {"version", "test"} <= set(RELEASE["images"]["needs"])
    assert {"version", "test", "images"} <= set(RELEASE["chart"]["needs"])


def test_only_an_image_that_passed_its_scan_is_signed() -> None:
    scan = step(RELEASED, "anchore/scan-action")
    assert scan["with"] == {"image": "registry:${{ env.IMAGE }}@${{ steps.push.outputs.digest }}"} | CUTOFF
    assert scan["uses"] == step(IMAGES, "anchore/scan-action")["uses"]
    assert not {"if", "continue-on-error"} & set(scan)
    assert place(RELEASED, "docker/build-push-action") < place(RELEASED, "anchore/scan-action")
    assert place(RELEASED, "anchore/scan-action") < place(RELEASED, "cosign sign") < place(RELEASED, "actions/attest")
