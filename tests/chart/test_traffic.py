"""Service, Ingress, HTTPRoute, InferencePool and the objects that scale: each a flag, off by default."""

import itertools
import re
from pathlib import Path

import pytest

from tests.chart.upgrades import deployed
from tests.support.helm import NAME, NAMESPACE, Values, render, render_upgrade

SCRAPED: Values = {"monitoring": {"scrape": "annotations"}}
FLAGS: dict[str, Values] = {
    "Ingress": {"ingress": {"enabled": True}},
    "HTTPRoute": {"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}},
    "InferencePool": {"gateway": {"inferencePool": {"enabled": True, "endpointPicker": {"name": "epp"}}}},
    "NetworkPolicy": {"networkPolicy": {"enabled": True}},
    "PodDisruptionBudget": {"mode": "cpu", "replicas": 2, "pdb": {"enabled": True}},
    "HorizontalPodAutoscaler": {"mode": "cpu", "autoscaling": {"kind": "hpa"}} | SCRAPED,
    "ScaledObject": {"mode": "cpu", "autoscaling": {"kind": "keda", "prometheusAddress": "http://p:9090"}} | SCRAPED,
    "ServiceMonitor": {"monitoring": {"scrape": "serviceMonitor"}},
    "PodMonitor": {"monitoring": {"scrape": "podMonitor"}},
    "PrometheusRule": {"monitoring": {"scrape": "podMonitor", "rules": True}},
}


@pytest.mark.parametrize("kind", FLAGS)
def test_a_flag_makes_its_object_and_nothing_does_without_it(kind: str) -> None:
    assert not render().all(kind)
    assert render(FLAGS[kind]).one(kind)["metadata"]["name"] == NAME


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({}, {"type": "ClusterIP", "port": {"name": "http", "port": 6006, "targetPort": "http", "protocol": "TCP"}}),
        (
            {"type": "LoadBalancer", "port": 80},
            {"type": "LoadBalancer", "port": {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}},
        ),
        (
            {"type": "NodePort", "nodePort": 30606},
            {
                "type": "NodePort",
                "port": {"name": "http", "port": 6006, "targetPort": "http", "protocol": "TCP", "nodePort": 30606},
            },
        ),
    ],
)
def test_the_service_leads_to_the_api(service: Values, expected: Values) -> None:
    found = render({"service": service | {"annotations": {"a": "b"}}}).one("Service", NAME)
    assert found["spec"]["type"] == expected["type"]
    assert found["spec"]["ports"] == [expected["port"]]
    assert found["metadata"]["annotations"] == {"a": "b"}


def test_a_load_balancer_has_its_class_and_its_callers() -> None:
    service = {"type": "LoadBalancer", "loadBalancerClass": "internal", "loadBalancerSourceRanges": ["10.0.0.0/8"]}
    spec = render({"service": service}).one("Service", NAME)["spec"]
    assert spec.items() >= service.items()
    pods = render({"service": service}).one("Service", f"{NAME}-pods")["spec"]
    assert not {"loadBalancerClass", "loadBalancerSourceRanges"} & set(pods)


def test_the_ingress_has_host_class_path_and_certificate() -> None:
    ingress = {"enabled": True, "host": "chat.example.com", "className": "internal", "tlsSecret": "tls"}
    spec = render({"ingress": ingress}).one("Ingress")["spec"]
    assert spec["ingressClassName"] == "internal"
    assert spec["tls"] == [{"secretName": "tls", "hosts": ["chat.example.com"]}]
    (rule,) = spec["rules"]
    assert rule["host"] == "chat.example.com"
    assert rule["http"]["paths"][0]["path"] == "/", "the service answers at its own paths and at no others"


def test_an_ingress_without_a_host_takes_every_host() -> None:
    spec = render({"ingress": {"enabled": True, "tlsSecret": "tls"}}).one("Ingress")["spec"]
    assert "host" not in spec["rules"][0]
    assert spec["tls"] == [{"secretName": "tls"}]


def test_a_route_leads_to_the_service_or_to_the_pool() -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public", "namespace": "gateways"}], "hostnames": ["a.example"]}
    pool = {"enabled": True, "endpointPicker": {"name": "epp", "port": 9003, "failureMode": "FailClose"}}
    plain = render({"gateway": {"httpRoute": route}, "service": {"port": 80}}).one("HTTPRoute")["spec"]
    assert plain["parentRefs"] == route["parentRefs"]
    assert plain["hostnames"] == ["a.example"]
    assert plain["rules"][0]["backendRefs"] == [{"name": NAME, "port": 80}]
    pooled = render({"gateway": {"httpRoute": route, "inferencePool": pool}})
    (backend,) = pooled.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend == {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": NAME}
    spec = pooled.one("InferencePool")["spec"]
    assert spec["targetPorts"] == [{"number": 6006}]
    assert spec["endpointPickerRef"] == {"name": "epp", "port": {"number": 9003}, "failureMode": "FailClose"}
    labels = pooled.workload["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


def test_the_autoscaler_goes_by_waiting_requests_and_owns_the_replicas() -> None:
    scaling = {"kind": "hpa", "minReplicas": 2, "maxReplicas": 6, "waitingRequests": 8, "scaleDownDelay": 60}
    manifests = render({"autoscaling": scaling, "storage": {"accessMode": "ReadWriteMany"}, "replicas": 5} | SCRAPED)
    spec = manifests.one("HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": NAME}
    metrics = {each["pods"]["metric"]["name"]: each["pods"]["target"] for each in spec["metrics"]}
    assert metrics == {
        "internlm_num_requests_waiting": {"type": "AverageValue", "averageValue": "8"},
        "internlm_num_requests_running": {"type": "AverageValue", "averageValue": "192"},
    }
    assert spec["behavior"]["scaleDown"] == {
        "stabilizationWindowSeconds": 60,
        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
    }
    assert "replicas" not in manifests.one("Deployment")["spec"]


def test_keda_asks_prometheus_for_this_releases_queue() -> None:
    scaling = {"kind": "keda", "prometheusAddress": "http://p:9090", "maxReplicas": 3}
    manifests = render({"autoscaling": scaling, "storage": {"perReplica": True}} | SCRAPED)
    spec = manifests.one("ScaledObject")["spec"]
    assert spec["scaleTargetRef"]["kind"] == "StatefulSet"
    triggers = [each["metadata"] for each in spec["triggers"]]
    assert {each["serverAddress"] for each in triggers} == {"http://p:9090"}
    pods = 'namespace="models",pod=~"chat-internlm-chat-[0-9]+"'
    assert {each["query"]: each["threshold"] for each in triggers} == {
        f"sum(max by (pod) (internlm_num_requests_waiting{{{pods}}}))": "4",
        f"sum(max by (pod) (internlm_num_requests_running{{{pods}}}))": "192",
    }
    assert "replicas" not in manifests.one("StatefulSet")["spec"]
    assert [each.keys() & {"authenticationRef"} for each in spec["triggers"]] == [set(), set()]


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_an_autoscaler_takes_over_as_many_pods_as_there_are(tmp_path: Path, kind: str) -> None:
    """Without the field, which helm would take away, Kubernetes would go back to one pod, and end the others' answers;
    0 is somebody's pause. So it is in every later upgrade, and under an autoscaler of the cluster's own."""
    storage = {"perReplica": True} if kind == "StatefulSet" else {"accessMode": "ReadWriteMany"}
    scaled = {"autoscaling": {"kind": "hpa", "maxReplicas": 9}, "storage": storage} | SCRAPED
    for was, values in itertools.product((0, 4), (scaled, {"storage": storage, "replicas": None})):
        there = deployed({"storage": storage, "replicas": 2})
        for now in (was, was + 1):
            there[0]["spec"]["replicas"] = now
            workload = render_upgrade(values, there, tmp_path).workload
            assert workload["spec"]["replicas"] == now
            there = [workload | {"metadata": workload["metadata"] | {"namespace": NAMESPACE}}]


def test_what_an_autoscaler_had_from_the_start_no_upgrade_states(tmp_path: Path) -> None:
    """While it waits for a model to come, the autoscaler may change it."""
    values = {"mode": "cpu", "autoscaling": {"kind": "hpa", "maxReplicas": 9}} | SCRAPED
    there = deployed(values)
    there[0]["spec"]["replicas"] = 4
    assert "replicas" not in render_upgrade(values, there, tmp_path).workload["spec"]


@pytest.mark.parametrize("length", [20, 46, 47, 48, 50, 52])
def test_keda_finds_pods_whose_names_kubernetes_has_cut(length: int) -> None:
    """What a pod's name is made from keeps 58 characters: with a long name, neither the second hyphen nor all of the
    hash."""
    name = "x" * length
    scaling = {"kind": "keda", "prometheusAddress": "http://p:9090"}
    scaled = render({"mode": "cpu", "fullnameOverride": name, "autoscaling": scaling} | SCRAPED).one("ScaledObject")
    (pods,) = {re.search('pod=~"([^"]+)"', each["metadata"]["query"])[1] for each in scaled["spec"]["triggers"]}  # type: ignore[index]
    assert re.fullmatch(pods, f"{name}-5bdfccf84d-"[:58] + "8rhvk")
    assert not re.fullmatch(pods, f"{name}-b-5bdfccf84d-8rhvk"), "another release's"


def test_keda_asks_a_prometheus_that_wants_to_know_who_asks() -> None:
    auth = {"name": "thanos", "modes": "bearer,custom"}
    scaling = {"kind": "keda", "prometheusAddress": "https://thanos:9091", "prometheusAuth": auth}
    scaled = render({"mode": "cpu", "autoscaling": scaling} | SCRAPED).one("ScaledObject")
    for trigger in scaled["spec"]["triggers"]:
        assert trigger["authenticationRef"] == {"name": "thanos"}
        assert trigger["metadata"]["authModes"] == "bearer,custom"


@pytest.mark.parametrize(
    ("values", "running"),
    [
        ({}, "192"),
        ({"settings": {"maxRunning": 64}}, "48"),
        ({"settings": {"maxRunning": 1}}, "1"),
        ({"mode": "cpu"}, "6"),
        ({"autoscaling": {"runningRequests": 100}}, "100"),
    ],
)
def test_replicas_that_are_busy_are_kept_and_full_ones_get_another(values: Values, running: str) -> None:
    """By waiting requests alone a release would shrink as long as each replica has room for all that is its own."""
    scaling = {"kind": "hpa"} | values.get("autoscaling", {})
    manifests = render(values | {"autoscaling": scaling, "storage": {"accessMode": "ReadWriteMany"}} | SCRAPED)
    metrics = manifests.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metrics[0]["pods"]["metric"]["name"] == "internlm_num_requests_running"
    assert metrics[0]["pods"]["target"]["averageValue"] == running


def test_a_disruption_budget_lets_unready_pods_go() -> None:
    values: Values = {"mode": "cpu", "replicas": 3, "pdb": {"enabled": True}}
    spec = render(values).one("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    old = render(values, kubernetes="1.26.0").one("PodDisruptionBudget")["spec"]
    assert "unhealthyPodEvictionPolicy" not in old


@pytest.mark.parametrize(
    ("ingress", "are_set"),
    [
        ({}, True),
        ({"className": "nginx"}, True),
        ({"className": "nginx-internal"}, True),
        ({"className": "traefik"}, False),
        ({"className": "traefik", "nginxAnnotations": True}, True),
        ({"className": "nginx", "nginxAnnotations": False}, False),
        ({"nginxAnnotations": False}, False),
    ],
)
def test_annotations_of_ingress_nginx_are_for_controllers_that_may_read_them(ingress: Values, are_set: bool) -> None:
    made = render({"ingress": {"enabled": True} | ingress}).one("Ingress")
    assert any("nginx" in name for name in made["metadata"].get("annotations", {})) is are_set
    assert made["spec"].get("ingressClassName") == ingress.get("className")


def test_own_annotations_reach_an_ingress_of_any_class() -> None:
    own = {"alb.ingress.kubernetes.io/target-type": "ip"}
    made = render({"ingress": {"enabled": True, "className": "alb", "annotations": own}}).one("Ingress")
    assert made["metadata"]["annotations"] == own


def test_both_services_have_the_families_that_are_asked_for_and_the_server_listens_where_it_is_told() -> None:
    families = {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]}
    manifests = render({"service": families, "settings": {"host": "::"}})
    for service in manifests.all("Service"):
        assert service["spec"].items() >= families.items()
    assert manifests.settings["INTERNLM_HOST"] == "::"
    plain = render()
    assert all(not set(families) & set(service["spec"]) for service in plain.all("Service"))
    assert "INTERNLM_HOST" not in plain.settings, "the server's own default"
