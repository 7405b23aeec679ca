"""Before an upgrade to other images or settings, a Job pulls and tries them while the old pod serves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.conftest import Complaints
from tests.chart.test_security import restricted_violations
from tests.chart.upgrades import claim, deployed, jobs, merged, selects
from tests.support.helm import KUBERNETES, NAME, Manifest, Manifests, Values, render_upgrade, settings_of
from tests.support.tools import HELM, HELM3, Binary

JOB = f"{NAME}-preflight"
NEWER: Values = {"image": {"tag": "2.0.0"}}
MODEL_IMAGE = "registry.internal/models/internlm3@sha256:" + "b" * 64


def upgrade(
    values: Values, folder: Path, *, was: Values | None = None, ready: int = 1, binary: Binary = HELM
) -> Manifests:
    return render_upgrade(values, [*deployed(was or {}, ready=ready), claim()], folder, binary=binary)


def pod_of(manifests: Manifests) -> Manifest:
    return manifests.one("Job", JOB)["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def containers_of(manifests: Manifests) -> list[Manifest]:
    return [*pod_of(manifests).get("initContainers", []), *pod_of(manifests)["containers"]]


@pytest.mark.parametrize("binary", [HELM, HELM3], ids=lambda binary: binary.name)
def test_new_images_are_pulled_and_settings_tried_before_anything_is_touched(tmp_path: Path, binary: Binary) -> None:
    manifests = upgrade(NEWER, tmp_path, binary=binary)
    annotations = manifests.one("Job", JOB)["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade"
    assert annotations["helm.sh/hook-output-log-policy"] == "hook-failed", "helm says why"
    containers = {each["name"]: each for each in containers_of(manifests)}
    assert containers["server"]["image"] == manifests.server["image"]
    assert containers["download"]["image"] == manifests.download["image"]
    for each in containers.values():
        assert each["command"] == ["internlm-chat", "check", "--settings"]
        assert settings_of(each) == manifests.settings


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"maxQueue": 7}},
        {"requestTimeout": 60},
        {"image": {"server": {"digest": "sha256:" + "a" * 64}}},
        {"image": {"downloader": {"digest": "sha256:" + "a" * 64}}},
        {"mode": "cpu"},
    ],
    ids=["a setting", "a value that is one", "the server's image", "the init container's", "the other mode"],
)
def test_whatever_the_new_pod_could_stumble_on_is_tried(tmp_path: Path, values: Values) -> None:
    assert jobs(upgrade(values, tmp_path)) == [JOB]


@pytest.mark.parametrize(
    ("was", "values"),
    [
        ({}, {}),
        ({"model": {"name": "for $5 or $$"}}, {"model": {"name": "for $5 or $$"}}),
        ({}, {"service": {"port": 80}, "resources": {"requests": {"cpu": "2"}}}),
        ({}, {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}]}),
        ({}, merged(NEWER, {"rollout": {"preflight": False}})),
        (
            {"storage": {"accessMode": "ReadWriteMany"}},
            merged(NEWER, {"storage": {"accessMode": "ReadWriteMany"}, "rollout": {"surge": True}}),
        ),
    ],
    ids=["nothing", "dollars", "what is no image and no setting", "others' environment", "switched off", "surge"],
)
def test_there_is_no_job_where_nothing_new_takes_a_pods_place(tmp_path: Path, was: Values, values: Values) -> None:
    assert jobs(upgrade(values, tmp_path, was=was)) == []


def test_an_upgrade_that_mends_a_release_is_not_held_up(tmp_path: Path) -> None:
    """Where no pod is ready there is nothing to lose, and perhaps no node that the Job could run on."""
    assert jobs(upgrade(NEWER, tmp_path, ready=0)) == []


def test_who_sees_no_cluster_makes_none(tmp_path: Path) -> None:
    assert jobs(render_upgrade(NEWER, [], tmp_path)) == []


def test_a_replica_with_a_claim_each_is_no_exception(tmp_path: Path) -> None:
    own = {"storage": {"perReplica": True}}
    assert jobs(upgrade(merged(NEWER, own), tmp_path, was=own)) == [JOB]
    assert jobs(upgrade(own, tmp_path, was=own)) == []


def test_before_another_model_is_brought_the_rest_is_tried(tmp_path: Path) -> None:
    manifests = upgrade({"model": {"revision": "v2"}}, tmp_path)
    weights = {each["metadata"]["name"]: each["metadata"]["annotations"] for each in manifests.all("Job")}
    order = sorted(weights, key=lambda name: int(weights[name]["helm.sh/hook-weight"]))
    assert order == [JOB, f"{NAME}-prefetch"]


def test_the_image_that_is_the_model_is_pulled_too(tmp_path: Path) -> None:
    was = {"model": {"source": "image", "image": MODEL_IMAGE}}
    assert jobs(upgrade(was, tmp_path, was=was)) == []
    manifests = upgrade({"model": {"source": "image", "image": MODEL_IMAGE + "0"}}, tmp_path, was=was)
    pod = pod_of(manifests)
    (volume,) = (each["image"] for each in pod["volumes"] if "image" in each)
    assert volume["reference"] == MODEL_IMAGE + "0"
    (container,) = pod["containers"]
    assert {"name": "model", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]


def test_it_needs_nothing_that_the_upgrade_may_be_bringing(tmp_path: Path) -> None:
    values = merged(
        NEWER,
        {"apiKeys": {"secretName": "keys"}, "model": {"tokenSecret": {"name": "hub"}}, "serviceAccount": {"name": "a"}},
    )
    values |= {
        "extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "new", "key": "k"}}}],
        "extraEnvFrom": [{"secretRef": {"name": "new"}}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "new"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    manifests = upgrade(values, tmp_path)
    assert {each["name"] for each in pod_of(manifests)["volumes"]} == {"tmp", "cache"}
    assert "serviceAccountName" not in pod_of(manifests)
    for container in containers_of(manifests):
        assert {each["name"] for each in container["volumeMounts"]} == {"tmp", "cache"}
        assert "envFrom" not in container
        assert [each for each in container["env"] if "valueFrom" in each] == []


def test_it_goes_to_the_servers_node_if_it_can_and_takes_no_gpu(tmp_path: Path) -> None:
    spread = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    gpu = {"nodeSelector": {"gpu": "h100"}, "runtimeClassName": "nv"}
    manifests = upgrade(merged(NEWER, {"pod": {"affinity": {"podAntiAffinity": spread}}, "gpu": gpu}), tmp_path)
    pod = pod_of(manifests)
    assert pod["affinity"].keys() == {"podAffinity"}
    (term,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    server = manifests.workload["spec"]["template"]["metadata"]["labels"]
    assert selects(term["podAffinityTerm"]["labelSelector"], server)
    assert pod["nodeSelector"] == manifests.pod["nodeSelector"]
    assert pod["nodeSelector"]["gpu"] == "h100"
    assert pod["tolerations"] == manifests.pod["tolerations"]
    assert "runtimeClassName" not in pod
    for container in containers_of(manifests):
        assert "nvidia.com/gpu" not in str(container["resources"])
        assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]


def test_nobody_has_to_make_room_for_it(tmp_path: Path) -> None:
    """It looks at some settings, whatever the init container may need for a download."""
    values = merged(NEWER, {"pod": {"priorityClassName": "high"}})
    values |= {"downloader": {"resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"memory": "8Gi"}}}}
    manifests = upgrade(values, tmp_path)
    assert "priorityClassName" not in pod_of(manifests)
    assert len(pod_of(manifests)["initContainers"]) == len(pod_of(manifests)["containers"]) == 1, "one at a time"
    for container in containers_of(manifests):
        assert container["resources"]["requests"] == {"cpu": "50m", "memory": "64Mi"}


def test_no_meshs_sidecar_keeps_a_job_from_ending(tmp_path: Path) -> None:
    manifests = upgrade({"model": {"revision": "v2"}, "pod": {"annotations": {"mine": "1"}}}, tmp_path)
    for job in manifests.all("Job"):
        metadata = job["spec"]["template"]["metadata"]
        assert metadata["labels"]["sidecar.istio.io/inject"] == "false"
        assert metadata["annotations"] == {"linkerd.io/inject": "disabled", "mine": "1"}
    served = manifests.workload["spec"]["template"]["metadata"]
    assert "sidecar.istio.io/inject" not in served["labels"], "the server keeps its own"


def test_it_is_valid_and_restricted_and_no_service_leads_to_it(tmp_path: Path, complaints: Complaints) -> None:
    manifests = upgrade(merged(NEWER, {"networkPolicy": {"enabled": True}}), tmp_path)
    job = manifests.one("Job", JOB)
    assert restricted_violations(job["spec"]["template"]["spec"]) == []
    assert job["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert complaints([(KUBERNETES, job)]) == ""
    labels = job["spec"]["template"]["metadata"]["labels"]
    for service in manifests.all("Service"):
        assert not selects({"matchLabels": service["spec"]["selector"]}, labels)
    assert not selects(manifests.workload["spec"]["selector"], labels)


def test_what_it_runs_takes_the_charts_settings_and_refuses_others(tmp_path: Path) -> None:
    """The command of its containers, on this machine, with their environment."""
    manifests = upgrade(NEWER, tmp_path)
    said = settings_of(pod_of(manifests)["containers"][0])
    assert checked(said) == (0, "")
    status, why = checked(said | {"INTERNLM_NEWER": "1"})
    assert status == 1
    assert why.startswith("internlm-chat: unknown setting INTERNLM_NEWER; known: ")
    assert checked(said | {"INTERNLM_DOWNLOAD_WORKERS": "99"})[0] == 1, "the download's are looked at, too"


def checked(settings: dict[str, str]) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INTERNLM_")}
    command = [sys.executable, "-m", "service", "check", "--settings"]
    done = subprocess.run(command, env=clean | settings, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr
