"""Before an upgrade to another model, a Job brings it while the old one serves; nothing else makes one."""

from pathlib import Path

import pytest

from tests.chart.conftest import Complaints
from tests.chart.test_security import restricted_violations
from tests.support.helm import KUBERNETES, NAME, NAMESPACE, Manifest, Manifests, Values, render, render_upgrade
from tests.support.tools import HELM, HELM3, Binary

OLD, NEW = {"model": {"revision": "v1"}}, {"model": {"revision": "v2"}}
JOB = f"{NAME}-prefetch"
SHARED = {"storage": {"accessMode": "ReadWriteMany"}}


def claim(name: str = f"{NAME}-model") -> Manifest:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": NAMESPACE}}


def deployed(values: Values) -> list[Manifest]:
    """What such a release has in the cluster that the chart looks at."""
    settings = render(values).one("ConfigMap", NAME)
    settings["metadata"]["namespace"] = NAMESPACE
    return [settings, claim()]


def merged(*values: Values) -> Values:
    """Sections of later values over those of earlier ones."""
    sections = {name for each in values for name in each}
    return {name: {k: v for each in values for k, v in each.get(name, {}).items()} for name in sections}


def upgrade(values: Values, folder: Path, *, was: Values = OLD, binary: Binary = HELM) -> Manifests:
    return render_upgrade(values, deployed(was), folder, binary=binary)


def jobs(manifests: Manifests) -> list[str]:
    return [each["metadata"]["name"] for each in manifests.all("Job")]


@pytest.mark.parametrize("binary", [HELM, HELM3], ids=lambda binary: binary.name)
def test_an_upgrade_to_another_revision_brings_it_before_anything_is_touched(tmp_path: Path, binary: Binary) -> None:
    manifests = upgrade(NEW, tmp_path, binary=binary)
    job, settings = manifests.one("Job", JOB), manifests.one("ConfigMap", JOB)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    assert int(settings["metadata"]["annotations"]["helm.sh/hook-weight"]) < 0, "what the Job reads is there first"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["download"]
    assert container["envFrom"][-1] == {"configMapRef": {"name": JOB}}
    assert job["spec"]["activeDeadlineSeconds"] == 3600


def test_it_fetches_what_the_new_pods_will_look_for_and_leaves_what_serves(tmp_path: Path) -> None:
    manifests = upgrade(NEW, tmp_path)
    prefetch, server = (manifests.one("ConfigMap", name)["data"] for name in (JOB, NAME))
    assert prefetch["INTERNLM_MODEL_DIR"].endswith("internlm3-8b-instruct@v2")
    assert prefetch == server | {"INTERNLM_DOWNLOAD_KEEP": render(OLD).settings["INTERNLM_MODEL_DIR"]}
    job, download = manifests.one("Job", JOB)["spec"]["template"]["spec"], manifests.download
    for same in ("image", "args", "resources", "securityContext", "volumeMounts"):
        assert job["containers"][0][same] == download[same]
    assert job["volumes"] == manifests.pod["volumes"]


@pytest.mark.parametrize(
    "values",
    [
        merged(OLD, {"settings": {"maxQueue": 7}}),
        {"model": {"revision": "v2", "path": "fixed"}},
        merged(NEW, {"rollout": {"prefetch": False}}),
        merged(NEW, {"storage": {"perReplica": True}}),
        merged(NEW, {"storage": {"accessMode": "ReadWriteOncePod"}}),
        merged(NEW, {"storage": {"existingClaim": "not-there"}}),
        {"model": {"source": "volume", "revision": "v2"}, "storage": {"existingClaim": f"{NAME}-model"}},
    ],
    ids=["the same model", "one path for all", "switched off", "a claim each", "one pod alone", "no claim", "no hub"],
)
def test_there_is_no_job_where_there_is_nothing_to_bring_or_no_way(tmp_path: Path, values: Values) -> None:
    was = {"model": {"revision": "v1", "path": "fixed"}} if "path" in values["model"] else OLD
    assert jobs(upgrade(values, tmp_path, was=was)) == []


def test_an_install_and_whoever_sees_no_cluster_make_none(tmp_path: Path) -> None:
    assert jobs(render(NEW)) == []
    assert jobs(render_upgrade(NEW, [], tmp_path)) == []


def test_another_repository_or_hub_is_another_model(tmp_path: Path) -> None:
    assert jobs(upgrade({"model": {"repository": "mine/tuned"}}, tmp_path)) == [JOB]
    assert jobs(upgrade({"model": {"source": "huggingface"}}, tmp_path)) == [JOB]


def test_it_runs_where_the_volume_is_and_needs_no_gpu(tmp_path: Path) -> None:
    zone = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    values = merged(
        NEW, {"pod": {"affinity": zone}, "gpu": {"nodeSelector": {"gpu": "h100"}, "runtimeClassName": "nv"}}
    )
    manifests = upgrade(values, tmp_path)
    spec = manifests.one("Job", JOB)["spec"]["template"]
    (term,) = spec["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    wanted = term["labelSelector"]["matchLabels"]
    (component,) = term["labelSelector"]["matchExpressions"]
    for labels in (manifests.workload["spec"]["template"]["metadata"]["labels"], spec["metadata"]["labels"]):
        # Its own labels fit, too: where no pod serves, the scheduler lets it go anywhere.
        assert wanted.items() <= labels.items()
        assert labels["app.kubernetes.io/component"] in component["values"]
    assert spec["spec"]["affinity"]["nodeAffinity"] == zone["nodeAffinity"]
    assert spec["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert spec["spec"]["tolerations"] == manifests.pod["tolerations"]
    assert "nvidia.com/gpu" not in str(spec["spec"]["containers"])
    assert "runtimeClassName" not in spec["spec"]


def test_a_volume_for_many_nodes_binds_it_to_none(tmp_path: Path) -> None:
    manifests = upgrade(merged(NEW, SHARED), tmp_path)
    assert "affinity" not in manifests.one("Job", JOB)["spec"]["template"]["spec"]


def test_no_service_leads_to_it_and_the_policy_lets_it_out(tmp_path: Path) -> None:
    manifests = upgrade(merged(NEW, {"networkPolicy": {"enabled": True}}), tmp_path)
    labels = manifests.one("Job", JOB)["spec"]["template"]["metadata"]["labels"]
    for selected in (*manifests.all("Service"), manifests.workload):
        selector = selected["spec"]["selector"]
        assert not selector.get("matchLabels", selector).items() <= labels.items()
    (expression,) = manifests.one("NetworkPolicy")["spec"]["podSelector"]["matchExpressions"]
    assert labels[expression["key"]] in expression["values"]


def test_it_is_valid_and_restricted_with_a_token_and_proxy_and_all(tmp_path: Path, complaints: Complaints) -> None:
    values = merged(NEW, {"model": {"tokenSecret": {"name": "hub-token"}}, "pod": {"annotations": {"mesh": "off"}}})
    values |= {"extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}], "image": {"pullSecrets": ["registry"]}}
    job = upgrade(values, tmp_path).one("Job", JOB)
    spec = job["spec"]["template"]["spec"]
    assert restricted_violations(spec) == []
    assert spec["automountServiceAccountToken"] is False
    assert {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]} >= {
        "/models",
        "/etc/internlm-chat/hub",
    }
    assert complaints([(KUBERNETES, job)]) == ""


@pytest.mark.parametrize(
    ("values", "may"),
    [
        ({}, "true"),
        (merged(SHARED, {"rollout": {"surge": True}}), "false"),
        (SHARED | {"replicas": 2}, "false"),
        ({"storage": {"existingClaim": "shared-with-others"}}, "false"),
        ({"storage": {"perReplica": True}, "replicas": 2}, "true"),
    ],
    ids=["recreated", "surge", "replicas", "somebody's claim", "a claim each"],
)
def test_an_old_revision_gives_way_only_where_nobody_can_be_using_it(values: Values, may: str) -> None:
    assert render(values).settings["INTERNLM_DOWNLOAD_MAKE_ROOM"] == may
