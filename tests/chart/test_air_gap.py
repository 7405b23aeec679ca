"""What the README says to do where there is no connection is valid, and the chart takes up what it leaves."""

import re
import textwrap

import yaml

from service import __version__
from tests.chart.conftest import Complaints
from tests.chart.test_security import restricted_violations
from tests.support.helm import CHART, KUBERNETES, Manifest, render

(SECTION,) = re.findall(r"^## Without a connection\n(.+?)^## ", (CHART / "README.md").read_text(), re.M | re.S)


def loader() -> list[Manifest]:
    """The claim and the pod that the model is copied through."""
    (block,) = re.findall(r"^ +```yaml\n(.+?)^ +```$", SECTION, re.M | re.S)
    return list(yaml.safe_load_all(textwrap.dedent(block)))


def test_the_loader_is_valid_and_runs_restricted(complaints: Complaints) -> None:
    assert complaints([(KUBERNETES, each) for each in loader()]) == ""
    assert restricted_violations(loader()[1]["spec"]) == []


def test_the_chart_finds_the_model_where_it_was_copied_to() -> None:
    claim, pod = loader()
    said = dict(re.findall(r"`(airGap|model\.source|storage\.existingClaim|model\.path)=(\w+)`", SECTION))
    assert said.keys() == {"airGap", "model.source", "storage.existingClaim", "model.path"}
    manifests = render(
        {
            "airGap": True,
            "model": {"source": "volume", "path": said["model.path"]},
            "storage": {"existingClaim": said["storage.existingClaim"]},
        }
    )
    assert said["storage.existingClaim"] == claim["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    # Into what is there already: a copy that is begun again does not end up within what was left of the first.
    ((name, target),) = re.findall(r"`kubectl cp models/(\w+) loader:(/\S+/)`", SECTION)
    assert target + name == manifests.settings["INTERNLM_MODEL_DIR"]
    assert target.rstrip("/") == container["volumeMounts"][0]["mountPath"]
    assert pod["spec"]["securityContext"].items() <= manifests.pod["securityContext"].items(), "the same may read it"
    assert manifests.download["image"].endswith(container["image"].rpartition("/")[2])


def test_the_downloader_is_this_charts() -> None:
    assert f"ghcr.io/internlm-chat/downloader:{__version__}" in SECTION
