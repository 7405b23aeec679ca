"""CONTRIBUTING.md gives the workflows' own commands, and the workflows give the tests what they ask for."""

import shlex

import pytest
import yaml

from tests.ci.workflows import GITHUB, ROOT, jobs, step
from tests.support.tools import HELM

DOCUMENTED = (GITHUB / "CONTRIBUTING.md").read_text()
CHECKS = ("ci.yml", "chart.yml", "e2e.yml")


def commands(workflow: str) -> list[str]:
    return [each["run"].strip() for job in jobs(workflow).values() for each in job["steps"] if "run" in each]


@pytest.mark.parametrize("workflow", CHECKS)
def test_workflows_run_what_contributing_says(workflow: str) -> None:
    documented = [each for each in commands(workflow) if "apt-get" not in each]
    assert documented
    assert [each for each in documented if f"{each}\n" not in DOCUMENTED] == []


@pytest.mark.parametrize("workflow", CHECKS)
def test_contributing_names_every_package_that_workflows_install(workflow: str) -> None:
    for command in commands(workflow):
        if "apt-get" in command:
            packages = shlex.split(command.rpartition(" install ")[2])
            assert [name for name in packages if not name.startswith("-") and name not in DOCUMENTED] == []


def test_contributing_sets_what_the_cluster_workflow_sets() -> None:
    environment = jobs("e2e.yml")["kind"]["env"]
    said = [each for each in DOCUMENTED.splitlines() if each.startswith("export ")]
    assert said == ["export " + " ".join(f"{k}={v}" for k, v in environment.items() if not k.startswith("PIP_"))]


def test_the_cluster_has_a_volume_for_the_second_replica() -> None:
    kind = jobs("e2e.yml")["kind"]
    storage_class, volume = yaml.safe_load_all((GITHUB / "kind-volumes.yaml").read_text())
    assert storage_class["metadata"]["name"] == kind["env"]["MANY_WRITERS_CLASS"]
    assert volume["spec"]["storageClassName"] == kind["env"]["MANY_WRITERS_CLASS"]
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    node = step(kind["steps"], "helm/kind-action")["with"]["cluster_name"] + "-control-plane"
    made = f"docker exec {node} install -d -m 0777 {volume['spec']['hostPath']['path']}\n"
    assert made in step(kind["steps"], "kubectl apply")["run"]


def test_workflows_take_the_helm_that_tests_take() -> None:
    for workflow, job in (("chart.yml", "chart"), ("release.yml", "chart")):
        version = step(jobs(workflow)[job]["steps"], "azure/setup-helm")["with"]["version"]
        assert f"helm-{version.removeprefix('v')}" == HELM.name


def test_only_what_has_no_published_schema_escapes_kubeconform() -> None:
    said = step(jobs("chart.yml")["chart"]["steps"], "kubeconform")["run"].split()
    assert "-strict" in said
    assert "-ignore-missing-schemas" not in said
    assert said[said.index("-skip") + 1] == "InferencePool"


def test_a_base_image_is_named_by_the_argument_that_contributing_names() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    (default,) = [each for each in dockerfile.splitlines() if each.startswith("ARG PYTHON_IMAGE=")]
    assert f"--build-arg {default.removeprefix('ARG ')}@sha256:" in DOCUMENTED
