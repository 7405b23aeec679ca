"""Kind of workload, rollout, GPU, images, resources and where the pod may run."""

from pathlib import Path

import pytest

from tests.chart.conftest import Complaints
from tests.chart.upgrades import claim, deployed
from tests.support.helm import KUBERNETES, NAME, Manifest, Values, render, render_upgrade

SHARED = {"storage": {"accessMode": "ReadWriteMany"}}
X86 = {"kubernetes.io/arch": "amd64"}
DIGEST = "sha256:" + "a" * 64


def test_one_gpu_never_waits_for_a_second_one() -> None:
    spec = render().one("Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("values", "surge", "unavailable"),
    [
        ({"replicas": 2} | SHARED, 0, 1),
        ({"autoscaling": {"kind": "hpa"}, "monitoring": {"scrape": "podMonitor"}} | SHARED, 0, 1),
        ({"rollout": {"surge": True}} | SHARED, 1, 0),
        ({"rollout": {"surge": True}, "mode": "cpu"}, 1, 0),
    ],
)
def test_more_replicas_are_replaced_one_by_one_and_surge_only_on_demand(
    values: Values, surge: int, unavailable: int
) -> None:
    strategy = render(values).one("Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}


def test_gpu_mode_asks_for_one_gpu_and_tolerates_its_taint() -> None:
    manifests = render()
    assert manifests.server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert manifests.pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert "runtimeClassName" not in manifests.pod
    assert manifests.settings["INTERNLM_DEVICE"] == "cuda"
    assert "nvidia.com/gpu" not in manifests.download["resources"]["limits"]


def test_a_mig_slice_a_runtime_class_and_node_labels_can_be_chosen() -> None:
    gpu = {"resource": "nvidia.com/mig-3g.40gb", "runtimeClassName": "nvidia", "nodeSelector": {"gpu": "a100"}}
    manifests = render({"gpu": gpu, "pod": {"nodeSelector": {"zone": "a"}}})
    limits = manifests.server["resources"]["limits"]
    assert limits["nvidia.com/mig-3g.40gb"] == "1"
    assert "nvidia.com/gpu" not in limits
    assert manifests.pod["runtimeClassName"] == "nvidia"
    assert manifests.pod["nodeSelector"] == {"gpu": "a100", "zone": "a"} | X86


def test_the_images_are_for_x86_and_somebodys_own_need_not_be() -> None:
    manifests = render()
    assert manifests.pod["nodeSelector"] == manifests.one("Pod")["spec"]["nodeSelector"] == X86
    grace = {"kubernetes.io/arch": "arm64"}
    for values in ({"gpu": {"nodeSelector": grace}}, {"mode": "cpu", "pod": {"nodeSelector": grace}}):
        own = render(values)
        assert own.pod["nodeSelector"] == own.one("Pod")["spec"]["nodeSelector"] == grace


def test_cpu_mode_knows_nothing_of_gpus() -> None:
    manifests = render({"mode": "cpu", "gpu": {"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "a100"}}})
    assert "nvidia" not in str(manifests.workload)
    assert not {"tolerations", "runtimeClassName"} & set(manifests.pod)
    assert manifests.pod["nodeSelector"] == X86
    assert manifests.server["image"].endswith("/server-cpu:0.1.0")
    assert manifests.settings["INTERNLM_DEVICE"] == "cpu"


@pytest.mark.parametrize(
    ("image", "server", "downloader"),
    [
        ({}, "ghcr.io/internlm-chat/server:0.1.0", "ghcr.io/internlm-chat/downloader:0.1.0"),
        ({"registry": "r.internal/x", "tag": "1.2.3"}, "r.internal/x/server:1.2.3", "r.internal/x/downloader:1.2.3"),
        (
            {"tag": "1", "server": {"name": "custom", "digest": DIGEST}, "downloader": {"digest": DIGEST}},
            f"ghcr.io/internlm-chat/custom@{DIGEST}",
            f"ghcr.io/internlm-chat/downloader@{DIGEST}",
        ),
    ],
)
def test_images_come_from_one_registry_and_a_digest_wins(image: Values, server: str, downloader: str) -> None:
    manifests = render({"image": image})
    assert manifests.server["image"] == server
    assert manifests.download["image"] == downloader
    assert manifests.one("Pod")["spec"]["containers"][0]["image"] == downloader, "the test pod pulls the small one"


def test_pull_policy_and_secrets_reach_every_pod() -> None:
    manifests = render({"image": {"pullPolicy": "Never", "pullSecrets": ["one", "two"]}})
    for pod in (manifests.pod, manifests.one("Pod")["spec"]):
        assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
        assert {c["imagePullPolicy"] for c in [*pod.get("initContainers", []), *pod["containers"]]} == {"Never"}


def test_a_changed_setting_restarts_the_pod_and_an_unrelated_value_does_not() -> None:
    def template(values: Values) -> Manifest:
        return render(values).workload["spec"]["template"]  # type: ignore[no-any-return]

    before = template({})
    assert template({"settings": {"maxQueue": 10}}) != before
    assert template({"ingress": {"enabled": True}}) == before


def test_a_pod_that_starts_again_is_told_what_it_was_told_at_first() -> None:
    """Nothing that an upgrade changes in place is a setting of a server that goes on meanwhile."""
    manifests = render()
    assert "envFrom" not in manifests.server
    changing = manifests.one("ConfigMap", NAME)["data"]
    assert changing == {"INTERNLM_DOWNLOAD_MAKE_ROOM": "true"}
    assert not changing.keys() & manifests.settings.keys()


def test_a_dollar_in_a_setting_is_a_dollar() -> None:
    said = "of $(USER), for $5 or $$"
    manifests = render({"model": {"name": said}})
    raw = {each["name"]: each["value"] for each in manifests.server["env"]}["INTERNLM_MODEL_ID"]
    assert raw == "of $$(USER), for $$5 or $$$$", "Kubernetes fills in what has one"
    assert manifests.settings["INTERNLM_MODEL_ID"] == said


def test_more_or_fewer_replicas_replace_no_pod() -> None:
    scaled = {"autoscaling": {"kind": "hpa"}, "monitoring": {"scrape": "podMonitor"}}
    templates = [render(SHARED | values).workload["spec"]["template"] for values in ({}, {"replicas": 3}, scaled)]
    assert templates[0] == templates[1] == templates[2]


def test_pod_options_reach_the_pod() -> None:
    pod = {
        "annotations": {"a": "1"},
        "labels": {"team": "nlp"},
        "priorityClassName": "high",
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    }
    manifests = render({"pod": pod, "commonLabels": {"cost": "42"}})
    metadata, spec = manifests.workload["spec"]["template"]["metadata"], manifests.pod
    assert metadata["annotations"]["a"] == "1"
    assert metadata["labels"] | {"team": "nlp", "cost": "42"} == metadata["labels"]
    assert (spec["priorityClassName"], spec["affinity"]) == ("high", {"nodeAffinity": {}})
    assert spec["tolerations"][-1] == {"key": "spot", "operator": "Exists"}
    assert spec["topologySpreadConstraints"] == pod["topologySpreadConstraints"]


def test_what_the_chart_has_no_value_for_reaches_every_pod(tmp_path: Path, complaints: Complaints) -> None:
    extra = {"schedulerName": "volcano", "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["hub.internal"]}]}
    values: Values = {"pod": {"extraSpec": extra}, "model": {"revision": "v2"}}
    manifests = render_upgrade(values, [*deployed({}), claim()], tmp_path)
    jobs = [job["spec"]["template"]["spec"] for job in manifests.all("Job")]
    assert len(jobs) == 2, "of the image and of the model"
    for pod in (manifests.pod, render(values).one("Pod")["spec"], *jobs):
        assert pod.items() >= extra.items()
    assert complaints([(KUBERNETES, each) for each in manifests if each["kind"] in ("Deployment", "Job")]) == ""


def test_the_test_pod_is_placed_as_the_server_and_asks_for_no_gpu() -> None:
    """It may have to run where GPUs are, and then tolerates what keeps others away from there."""
    pod = {
        "priorityClassName": "high",
        "affinity": {"nodeAffinity": {}},
        "nodeSelector": {"pool": "llm"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    }
    gpu = {"runtimeClassName": "nvidia", "nodeSelector": {"gpu": "a100"}}
    spec = render({"pod": pod, "gpu": gpu}).one("Pod")["spec"]
    del pod["topologySpreadConstraints"], spec["volumes"], spec["containers"]
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, *pod["tolerations"]]  # type: ignore[misc]
    selector = {"nodeSelector": {"pool": "llm"} | X86}
    assert {key: spec[key] for key in pod} == pod | selector | {"tolerations": tolerations}
    assert "a100" not in str(spec)
    assert "runtimeClassName" not in spec
    assert "topologySpreadConstraints" not in spec, "that is for replicas"


def test_extra_environment_and_volumes_reach_both_containers() -> None:
    manifests = render(
        {
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        }
    )
    assert {"name": "ca", "configMap": {"name": "ca"}} in manifests.pod["volumes"]
    for container in (manifests.server, manifests.download):
        assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in container["env"]
        assert {"name": "ca", "mountPath": "/ca"} in container["volumeMounts"]


def test_selectors_hold_nothing_that_can_change() -> None:
    manifests = render({"commonLabels": {"cost": "42"}, "pod": {"labels": {"team": "nlp"}}})
    wanted = {
        "app.kubernetes.io/name": "internlm-chat",
        "app.kubernetes.io/instance": "chat",
        "app.kubernetes.io/component": "server",
    }
    assert manifests.workload["spec"]["selector"]["matchLabels"] == wanted
    assert all(service["spec"]["selector"] == wanted for service in manifests.all("Service"))


def test_the_test_pod_is_not_behind_the_service() -> None:
    manifests = render()
    selector = manifests.one("Service", NAME)["spec"]["selector"]
    assert not selector.items() <= manifests.one("Pod")["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "chat-internlm-chat"),
        ({"nameOverride": "llm"}, "chat-llm"),
        ({"fullnameOverride": "llm"}, "llm"),
        ({"nameOverride": "cha"}, "chat"),
        ({"fullnameOverride": "x" * 52}, "x" * 52),
    ],
)
def test_names_can_be_chosen_and_every_derived_name_still_fits(values: Values, name: str) -> None:
    manifests = render(values | {"autoscaling": {"kind": "none"}, "monitoring": {"dashboards": {"enabled": True}}})
    assert manifests.workload["metadata"]["name"] == name
    assert all(len(each["metadata"]["name"]) <= 63 for each in manifests)


def test_every_object_carries_the_common_labels_and_annotations() -> None:
    common: Values = {"commonLabels": {"cost": "42"}, "commonAnnotations": {"owner": "nlp", "a": "common"}}
    everything: Values = {
        "ingress": {"enabled": True, "annotations": {"a": "own"}},
        "service": {"annotations": {"a": "own"}},
        "serviceAccount": {"annotations": {"a": "own"}},
        "storage": {"accessMode": "ReadWriteMany", "annotations": {"a": "own"}},
        "gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
        "networkPolicy": {"enabled": True},
        "monitoring": {"scrape": "podMonitor", "rules": True, "dashboards": {"enabled": True, "folder": "Models"}},
        "replicas": 2,
        "pdb": {"enabled": True},
    }
    with_own = {"Ingress", "Service", "ServiceAccount", "PersistentVolumeClaim"}
    for each in render(common | everything):
        metadata = each["metadata"]
        assert metadata["labels"]["cost"] == "42", each["kind"]
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        a = "own" if each["kind"] in with_own and metadata["name"] != f"{NAME}-pods" else "common"
        assert metadata["annotations"].items() >= {"owner": "nlp", "a": a}.items(), each["kind"]
    pod = render(common).workload["spec"]["template"]["metadata"]
    assert "owner" not in pod.get("annotations", {}), "a changed annotation would restart the pods"


def test_more_environment_comes_from_config_maps_and_secrets_and_the_charts_own_wins() -> None:
    more = [{"secretRef": {"name": "proxy"}}, {"configMapRef": {"name": "site", "optional": True}}]
    manifests = render({"extraEnvFrom": more})
    assert manifests.server["envFrom"] == more
    assert manifests.download["envFrom"] == [*more, {"configMapRef": {"name": NAME, "optional": True}}], (
        "the last one wins"
    )
    for container in (manifests.server, manifests.download):
        assert "INTERNLM_DEVICE" in [each["name"] for each in container["env"]], "which wins over all of those"


def test_further_objects_are_part_of_the_release_and_may_be_templates() -> None:
    extra = {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ExternalSecret",
        "metadata": {"name": '{{ include "chat.fullname" . }}-keys', "namespace": "{{ .Release.Namespace }}"},
        "spec": {"target": {"name": "{{ .Values.apiKeys.secretName }}"}},
    }
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}, "data": {"a": "1"}}
    manifests = render({"extraObjects": [extra, other], "apiKeys": {"secretName": "keys"}})
    made = manifests.one("ExternalSecret")
    assert made["metadata"] == {"name": f"{NAME}-keys", "namespace": "models"}
    assert made["spec"] == {"target": {"name": "keys"}}
    assert manifests.one("ConfigMap", "other") == other
