"""Before an upgrade to another model, a Job brings it while the old one serves."""

from pathlib import Path

import pytest

from tests.chart.conftest import Complaints
from tests.chart.test_security import restricted_violations
from tests.chart.upgrades import claim, deployed, jobs, merged, only_container, selects
from tests.support.helm import KUBERNETES, NAME, NAMESPACE, Manifests, Values, render, render_upgrade, settings_of
from tests.support.tools import HELM, HELM3, Binary

OLD, NEW = {"model": {"revision": "v1"}}, {"model": {"revision": "v2"}}
JOB = f"{NAME}-prefetch"
HELMS_PATIENCE = 300
"""Seconds that `helm upgrade` waits without --timeout."""
SHARED = {"storage": {"accessMode": "ReadWriteMany"}}


def upgrade(values: Values, folder: Path, *, was: Values = OLD, binary: Binary = HELM) -> Manifests:
    """Where no pod is ready, so that this Job is the only one."""
    return render_upgrade(values, [*deployed(was, ready=0), claim()], folder, binary=binary)


@pytest.mark.parametrize("binary", [HELM, HELM3], ids=lambda binary: binary.name)
def test_an_upgrade_to_another_revision_brings_it_before_anything_is_touched(tmp_path: Path, binary: Binary) -> None:
    manifests = upgrade(NEW, tmp_path, binary=binary)
    job = manifests.one("Job", JOB)
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"
    container = only_container(job)
    assert container["args"] == ["download"]
    assert "envFrom" not in container, "the release's ConfigMap is not upgraded yet"
    assert job["spec"]["activeDeadlineSeconds"] == 3600


def test_it_fetches_what_the_new_pods_will_look_for_and_leaves_what_serves(tmp_path: Path) -> None:
    manifests = upgrade(NEW, tmp_path)
    prefetch = settings_of(only_container(manifests.one("Job", JOB)))
    assert prefetch["INTERNLM_MODEL_DIR"].endswith("internlm3-8b-instruct@v2")
    own = {"INTERNLM_DOWNLOAD_KEEP": render(OLD).settings["INTERNLM_MODEL_DIR"], "INTERNLM_DOWNLOAD_BUDGET": "120"}
    assert prefetch == manifests.download_settings | own


def test_a_hub_that_is_not_there_is_told_before_helm_loses_its_patience(tmp_path: Path) -> None:
    """However often Kubernetes tries: it waits 10 s before a second try, and twice as long before each further one."""
    manifests = upgrade(NEW, tmp_path)
    job = manifests.one("Job", JOB)
    retries = job["spec"]["backoffLimit"]
    budget = int(settings_of(only_container(job))["INTERNLM_DOWNLOAD_BUDGET"])
    assert (retries + 1) * budget + sum(10 * 2**n for n in range(retries)) < HELMS_PATIENCE


def test_a_name_that_is_a_number_stays_a_name(tmp_path: Path) -> None:
    values = merged(NEW, {"networkPolicy": {"enabled": True}}) | {"nameOverride": "8", "fullnameOverride": NAME}
    selector = upgrade(values, tmp_path).one("NetworkPolicy")["spec"]["podSelector"]
    assert selector["matchExpressions"][0]["values"] == ["8", "8-prefetch"]


def test_it_has_the_pods_resources_and_mounts(tmp_path: Path) -> None:
    manifests = upgrade(NEW, tmp_path)
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
        {"model": {"source": "volume", "revision": "v2"}, "storage": {"existingClaim": f"{NAME}-model"}},
    ],
    ids=["the same model", "one path for all", "switched off", "a claim each", "one pod alone", "no hub"],
)
def test_there_is_no_job_where_there_is_nothing_to_bring_or_no_way(tmp_path: Path, values: Values) -> None:
    was = {"model": {"revision": "v1", "path": "fixed"}} if "path" in values["model"] else OLD
    assert jobs(upgrade(values, tmp_path, was=was)) == []


def test_an_install_and_whoever_sees_no_cluster_make_none(tmp_path: Path) -> None:
    assert jobs(render(NEW)) == []
    assert jobs(render_upgrade(NEW, [], tmp_path)) == []


def test_where_the_claim_is_not_there_yet_the_init_container_does_it(tmp_path: Path) -> None:
    assert jobs(render_upgrade(NEW, deployed(OLD, ready=0), tmp_path)) == []


def test_a_claim_of_ones_own_is_not_looked_at(tmp_path: Path) -> None:
    """That would take a right which helm needs for nothing else."""
    values = merged(NEW, {"storage": {"existingClaim": "mine"}})
    assert jobs(render_upgrade(values, deployed(OLD, ready=0), tmp_path)) == [JOB]


def test_another_repository_or_hub_is_another_model(tmp_path: Path) -> None:
    assert jobs(upgrade({"model": {"repository": "mine/tuned"}}, tmp_path)) == [JOB]
    tuned: Values = {"model": {"repository": "mine/tuned"}}
    assert jobs(upgrade(merged(tuned, {"model": {"source": "huggingface"}}), tmp_path, was=tuned)) == [JOB]


@pytest.mark.parametrize("create", [True, False])
def test_it_runs_under_the_pods_account_where_that_is_there(tmp_path: Path, create: bool) -> None:
    values = merged(NEW, {"serviceAccount": {"name": "mine", "create": create}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mine", "namespace": NAMESPACE}}
    for there in ([], [account]):
        job = render_upgrade(values, [*deployed(OLD), claim(), *there], tmp_path).one("Job", JOB)
        name = job["spec"]["template"]["spec"].get("serviceAccountName")
        assert name == (None if create and not there else "mine")


def test_it_runs_where_the_volume_is_and_needs_no_gpu(tmp_path: Path) -> None:
    zone = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}
    spread = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    affinity = {"nodeAffinity": zone, "podAntiAffinity": spread, "podAffinity": spread}
    gpu = {"nodeSelector": {"gpu": "h100"}, "runtimeClassName": "nv"}
    manifests = upgrade(merged(NEW, {"pod": {"affinity": affinity}, "gpu": gpu}), tmp_path)
    pod = manifests.one("Job", JOB)["spec"]["template"]
    (term,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    for labels in (manifests.workload["spec"]["template"]["metadata"]["labels"], pod["metadata"]["labels"]):
        # Its own labels fit, too: where no pod serves, the scheduler lets it go anywhere.
        assert selects(term["labelSelector"], labels)
    assert pod["spec"]["affinity"].keys() == {"nodeAffinity", "podAffinity"}, "what keeps servers apart is not for it"
    assert pod["spec"]["affinity"]["nodeAffinity"] == zone
    assert pod["spec"]["nodeSelector"] == manifests.pod["nodeSelector"]
    assert pod["spec"]["nodeSelector"]["gpu"] == "h100"
    assert pod["spec"]["tolerations"] == manifests.pod["tolerations"]
    assert "nvidia.com/gpu" not in str(pod["spec"]["containers"])
    assert "runtimeClassName" not in pod["spec"]


def test_a_rule_that_keeps_servers_apart_does_not_keep_it_from_its_server(tmp_path: Path) -> None:
    labels = upgrade(NEW, tmp_path).one("Job", JOB)["spec"]["template"]["metadata"]["labels"]
    assert not selects({"matchLabels": {"app.kubernetes.io/name": "internlm-chat"}}, labels)


def test_a_volume_for_many_nodes_binds_it_to_none(tmp_path: Path) -> None:
    manifests = upgrade(merged(NEW, SHARED), tmp_path)
    assert "affinity" not in manifests.one("Job", JOB)["spec"]["template"]["spec"]


def test_no_service_leads_to_it_and_the_policy_lets_it_out(tmp_path: Path) -> None:
    manifests = upgrade(merged(NEW, {"networkPolicy": {"enabled": True}}), tmp_path)
    labels = manifests.one("Job", JOB)["spec"]["template"]["metadata"]["labels"]
    for selected in (*manifests.all("Service"), manifests.workload):
        selector = selected["spec"]["selector"]
        assert not selects(selector if "matchLabels" in selector else {"matchLabels": selector}, labels)
    policy = manifests.one("NetworkPolicy")["spec"]["podSelector"]
    assert selects(policy, labels)
    assert selects(policy, manifests.workload["spec"]["template"]["metadata"]["labels"])


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
    assert render(values).download_settings["INTERNLM_DOWNLOAD_MAKE_ROOM"] == may
