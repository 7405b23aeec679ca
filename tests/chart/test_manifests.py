"""Every combination in ci/ is valid Kubernetes of three minor versions and valid custom resources."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.helm import CHART, KUBERNETES, Manifest, render
from tests.support.tools import HELM, HELM3, Binary, python_with

CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES_MINORS = ("1.33.0", "1.35.0", "1.37.0")
CRDS = Path(os.environ.get("CRDS") or Path(__file__).parents[3] / "shared" / "crds")
OWN_CRDS = {"InferencePool"}

CHECK = """
import json, sys, kubernetes_validate as validate
for version, manifest in json.load(sys.stdin):
    try:
        validate.validate(manifest, version, strict=True)
    except (validate.ValidationError, validate.SchemaNotFoundError) as error:
        print(f"{version} {manifest['kind']}/{manifest['metadata']['name']}: {error.message}")
"""


@pytest.fixture(scope="session")
def validator() -> Path:
    """A Python with the schemas of many Kubernetes versions: 100 MB."""
    return python_with("kubernetes-validate==1.37.0")


def is_custom(manifest: Manifest) -> bool:
    group = manifest["apiVersion"].rpartition("/")[0]
    return ("." in group and not group.endswith(".k8s.io")) or group.startswith(("gateway.", "inference."))


def test_every_built_in_object_is_valid_in_three_kubernetes_versions(validator: Path) -> None:
    work = [
        (version, manifest)
        for version in KUBERNETES_MINORS
        for file in CI_VALUES
        for manifest in render(files=[file], kubernetes=version)
        if not is_custom(manifest)
    ]
    assert len(work) > 3 * 6 * len(CI_VALUES)
    done = subprocess.run([validator, "-c", CHECK], input=json.dumps(work), capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_the_validator_sees_a_wrong_field(validator: Path) -> None:
    broken = render().one("Deployment")
    broken["spec"]["template"]["spec"]["hostname"] = 3
    broken["spec"]["replica"] = 1
    done = subprocess.run(
        [validator, "-c", CHECK], input=json.dumps([(KUBERNETES, broken)]), capture_output=True, text=True, check=True
    )
    assert "Deployment/chat-internlm-chat" in done.stdout


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
