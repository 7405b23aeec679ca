"""Values that pass the schema and cannot work together: each is refused by one sentence that shows the way out."""

from collections.abc import Callable

import pytest

from tests.support.helm import Values, refusal, render

HUB = {"source": "modelscope", "repository": "someone/small"}
CLAIM = {"existingClaim": "models"}

IMPOSSIBLE: dict[str, tuple[Values, str]] = {
    "a name no Service can have": ({"fullnameOverride": "Chat_1"}, '"Chat_1" cannot name a Service'),
    "a name of digits": ({"fullnameOverride": "123"}, "Set fullnameOverride, or another release name"),
    "a name that is no label": ({"nameOverride": "My Chat", "fullnameOverride": "chat"}, 'nameOverride="My Chat"'),
    "a common label that selects": (
        {"commonLabels": {"app.kubernetes.io/component": "llm"}},
        "commonLabels may not set app.kubernetes.io/component",
    ),
    "a pod's label that selects": ({"pod": {"labels": {"app.kubernetes.io/name": "x"}}}, "pod.labels may not set"),
    "a monitor's label that selects": (
        {"monitoring": {"labels": {"app.kubernetes.io/instance": "x"}}},
        "monitoring.labels may not set",
    ),
    "a volume of the chart's name": ({"extraVolumes": [{"name": "cache", "emptyDir": {}}]}, "take another name"),
    "a volume where the chart has one": (
        {"extraVolumeMounts": [{"name": "big", "mountPath": "/cache/"}]},
        "extraVolumeMounts has /cache/, where the chart mounts a volume of its own",
    ),
    "a field of the pod that the chart sets": (
        {"pod": {"extraSpec": {"schedulerName": "volcano", "nodeSelector": {"a": "b"}}}},
        "pod.extraSpec may not set nodeSelector",
    ),
    "a volume for each replica that exists already": (
        {"model": {"source": "volume"}, "storage": {"perReplica": True}},
        "name it in storage.existingClaim and leave storage.perReplica false",
    ),
    "the small model in mode gpu": ({"model": {"source": "builtin"}}, "set mode=cpu"),
    "the 8B model on a CPU": (
        {"mode": "cpu", "model": {"source": "modelscope"}},
        "name a small one in model.repository",
    ),
    "a volume without a claim": ({"model": {"source": "volume"}}, "name its claim in storage.existingClaim"),
    "an image volume without an image": ({"model": {"source": "image"}}, "needs model.image"),
    "an air gap with a way out": (
        {
            "airGap": True,
            "model": {"source": "volume"},
            "storage": CLAIM,
            "networkPolicy": {"extraEgress": [{"ports": [{"port": 443}]}]},
        },
        "set networkPolicy.enabled=true instead of airGap",
    ),
    "an air gap and a hub": ({"airGap": True}, "use volume with storage.existingClaim, image, or builtin"),
    "an air gap and the other hub": ({"airGap": True, "model": {"source": "huggingface"}}, "source=huggingface cannot"),
    "a claim smaller than the model": ({"storage": {"size": "16Gi"}}, "storage.size=16Gi is smaller than the model"),
    "a claim smaller than an own model": (
        {"model": HUB | {"size": "1.5T"}, "storage": {"size": "1Ti"}},
        "takes 1.5T (model.size): raise storage.size",
    ),
    "a download onto a read-only volume": ({"storage": {"accessMode": "ReadOnlyMany"}}, "cannot take a download"),
    "two replicas on one ReadWriteOnce volume": ({"replicas": 2}, "2 replicas cannot share one ReadWriteOnce volume"),
    "two replicas on a ReadWriteOncePod volume": (
        {"replicas": 2, "storage": CLAIM | {"accessMode": "ReadWriteOncePod"}},
        "cannot share one ReadWriteOncePod volume: set storage.accessMode=ReadWriteMany",
    ),
    "autoscaling on one ReadWriteOnce volume": (
        {"autoscaling": {"kind": "hpa", "maxReplicas": 5}},
        "5 replicas cannot share one ReadWriteOnce volume",
    ),
    "a claim each and an existing one": ({"storage": CLAIM | {"perReplica": True}}, "existingClaim must be empty"),
    "a surge on a ReadWriteOnce volume": ({"rollout": {"surge": True}}, "set storage.accessMode=ReadWriteMany, or"),
    "a surge of a StatefulSet": (
        {"rollout": {"surge": True}, "storage": {"perReplica": True}},
        "exclude each other",
    ),
    "a grace period within the drain": ({"rollout": {"gracePeriod": 307}}, "draining takes 307 s"),
    "a grace period shorter than an answer": (
        {"requestTimeout": 600, "rollout": {"gracePeriod": 600}},
        "rollout.gracePeriod=600 would kill running answers",
    ),
    "fewest above most replicas": (
        {"mode": "cpu", "autoscaling": {"kind": "hpa", "minReplicas": 3}},
        "minReplicas=3 is more than autoscaling.maxReplicas=2",
    ),
    "KEDA without Prometheus": (
        {"mode": "cpu", "autoscaling": {"kind": "keda"}},
        "set autoscaling.prometheusAddress",
    ),
    "autoscaling on a metric nobody scrapes": (
        {"mode": "cpu", "autoscaling": {"kind": "hpa"}},
        "autoscaling.kind=hpa goes by internlm_num_requests_waiting in Prometheus, and nothing brings it there",
    ),
    "KEDA on a metric nobody scrapes": (
        {"mode": "cpu", "autoscaling": {"kind": "keda", "prometheusAddress": "http://p:9090"}},
        "set monitoring.scrape to serviceMonitor or podMonitor, or to annotations where something of your own scrapes",
    ),
    "a disruption budget over one pod": ({"pdb": {"enabled": True}}, "pdb.enabled with one replica"),
    "a route to nowhere": ({"gateway": {"httpRoute": {"enabled": True}}}, "needs gateway.httpRoute.parentRefs"),
    "an inference pool without a picker": (
        {"gateway": {"inferencePool": {"enabled": True}}},
        "needs gateway.inferencePool.endpointPicker.name",
    ),
    "alerts nobody loads": ({"monitoring": {"rules": True}}, "needs monitoring.scrape=serviceMonitor or podMonitor"),
    "alerts beside annotations": (
        {"monitoring": {"rules": True, "scrape": "annotations"}},
        "needs monitoring.scrape=serviceMonitor or podMonitor",
    ),
    "more asked for than allowed": (
        {"resources": {"requests": {"memory": "64Gi"}, "limits": {"memory": "32G"}}},
        "resources.requests.memory=64Gi is more than resources.limits.memory=32G",
    ),
    "more CPUs for the download than allowed": (
        {"downloader": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
        "downloader.resources.requests.cpu=2 is more than downloader.resources.limits.cpu=1500m",
    ),
    "a second GPU": (
        {"resources": {"limits": {"nvidia.com/gpu": 2}}},
        "resources.limits names nvidia.com/gpu, of which a pod gets one",
    ),
    "both families if there are two to a server of one": (
        {"service": {"ipFamilyPolicy": "PreferDualStack"}},
        'set settings.host="::", which is both families',
    ),
    "a server that only its pod reaches": ({"settings": {"host": "127.0.0.1"}}, "settings.host=127.0.0.1 listens"),
    "the same by name": ({"settings": {"host": "localhost"}}, "neither probes nor the Service would reach it"),
    "IPv6 to a server of IPv4": ({"service": {"ipFamilies": ["IPv6"]}}, 'set settings.host="::"'),
    "both families to a server of one": (
        {"service": {"ipFamilyPolicy": "RequireDualStack"}, "settings": {"host": "10.0.0.1"}},
        'set settings.host="::", which is both families',
    ),
    "eight bits for the reference engine": (
        {"settings": {"engine": "reference", "quantization": "int8"}},
        "settings.quantization=int8 is the native engine's",
    ),
    "callers of a ClusterIP": (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "service.loadBalancerSourceRanges needs service.type=LoadBalancer, not ClusterIP",
    ),
    "a load balancer's class on a NodePort": (
        {"service": {"type": "NodePort", "loadBalancerClass": "internal"}},
        "service.loadBalancerClass needs service.type=LoadBalancer, not NodePort",
    ),
    "a node port of a ClusterIP": ({"service": {"nodePort": 30080}}, "needs service.type=NodePort, not ClusterIP"),
}


@pytest.mark.parametrize(("values", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_what_cannot_work_is_refused_with_the_way_out(values: Values, sentence: str) -> None:
    said = refusal(values)
    assert sentence in said
    assert "execution error at" in said, "refused by our sentence, not by the schema or a template's crash"


def test_image_volumes_are_refused_where_kubernetes_has_none() -> None:
    values: Values = {"model": {"source": "image", "image": "x"}}
    assert "from 1.35; this cluster is v1.32.5" in refusal(values, kubernetes="1.32.5")
    assert render(values, kubernetes="1.33.0")


def test_a_claim_is_refused_where_kubernetes_has_none() -> None:
    values: Values = {"gpu": {"claimTemplate": "one-gpu"}}
    assert "this cluster is v1.33.9. Use gpu.resource." in refusal(values, kubernetes="1.33.9")
    assert render(values, kubernetes="1.34.0")
    assert render(values | {"mode": "cpu"}, kubernetes="1.33.9")


@pytest.mark.parametrize(
    ("size", "model", "fits"),
    [
        ("17700000000", "17.7G", True),
        ("17699999999", "17.7G", False),
        ("17Gi", "17G", True),
        ("17G", "17Gi", False),
        ("1Ti", "1T", True),
        ("1024Mi", "1Gi", True),
        ("1000k", "1M", True),
        ("0.5Pi", "513Ti", False),
    ],
)
def test_sizes_are_compared_as_kubernetes_reads_them(size: str, model: str, fits: bool) -> None:
    values: Values = {"model": HUB | {"size": model}, "storage": {"size": size}}
    check: Callable[[Values], object] = render if fits else refusal
    assert check(values)


def test_a_model_of_unknown_size_is_left_to_the_downloads_own_check() -> None:
    assert render({"model": HUB, "storage": {"size": "1Mi"}})
    assert render({"storage": CLAIM | {"size": "1Mi"}}), "the claim exists: its size is not ours"
