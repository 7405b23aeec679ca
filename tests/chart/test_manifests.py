"""Every combination in ci/ is valid Kubernetes of three minor versions and valid custom resources."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chart.conftest import Complaints
from tests.support.helm import CHART, KUBERNETES, Manifest, render
from tests.support.tools import HELM, HELM3, Binary

CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES_MINORS = ("1.34.0", "1.35.0", "1.37.0")
CRDS = Path(os.environ.get("CRDS") or Path(__file__).parents[3] / "shared" / "crds")
OWN_CRDS = {"InferencePool"}


def is_custom(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].rpartition("/")[0]
    return ("." in group and not group.endswith(".k8s.io")) or group.startswith(("gateway.", "inference."))


def test_every_built_in_object_is_valid_in_three_kubernetes_versions(complaints: Complaints) -> None:
    work = [
        (version, manifest)
        for version in KUBERNETES_MINORS
        for file in CI_VALUES
        for manifest in render(files=[file], kubernetes=version)
        if not is_custom(manifest)
    ]
    assert len(work) > 3 * 6 * len(CI_VALUES)
    assert complaints(work) == ""


def test_the_validator_sees_a_wrong_field(complaints: Complaints) -> None:
    broken = render().one("Deployment")
    broken["spec"]["template"]["spec"]["hostname"] = 3
    broken["spec"]["replica"] = 1
    assert "Deployment/chat-internlm-chat" in complaints([(KUBERNETES, broken)])


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"no custom resource definitions in {CRDS}; set CRDS to a folder of them")
@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_every_custom_resource_fits_its_definition(file: Path) -> None:
    custom = [each for each in render(files=[file]) if is_custom(each) and each["kind"] not in OWN_CRDS]
    if not custom:
        return
    done = subprocess.run(
        [sys.executable, CRDS / "validate.py"],
        input=yaml.safe_dump_all(custom),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_covers_every_custom_resource_the_chart_can_make() -> None:
    kinds = {each["kind"] for file in CI_VALUES for each in render(files=[file]) if is_custom(each)}
    assert kinds == {"HTTPRoute", "InferencePool", "PrometheusRule", "PodMonitor", "ScaledObject", "ServiceMonitor"}


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_helm_3_renders_what_helm_4_renders(file: Path) -> None:
    def objects(binary: Binary) -> dict[str, Manifest]:
        rendered = render(files=[file], binary=binary)
        return {f"{each['kind']}/{each['metadata']['name']}": each for each in rendered}

    assert objects(HELM3) == objects(HELM)


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_rendering_twice_gives_the_same(file: Path) -> None:
    assert render(files=[file]) == render(files=[file]), "anything random restarts pods at every upgrade"
