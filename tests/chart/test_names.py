"""Names and labels: what operators call things renders as a string, and every label is said once."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.support.helm import CHART, KUBERNETES, Values, helm, refusal, render

LABELLED: Values = {
    "commonLabels": {"release": "common", "team": "llm"},
    "monitoring": {
        "scrape": "serviceMonitor",
        "rules": True,
        "labels": {"release": "prometheus"},
        "dashboards": {"enabled": True, "label": "team"},
    },
    "pod": {"labels": {"release": "pod"}},
}
ODD: Values = {
    "apiKeys": {"secretName": "123", "key": "true"},
    "model": {"path": "a: b", "tokenSecret": {"name": "456", "key": "7"}},
    "storage": {"storageClass": "1"},
    "ingress": {"enabled": True, "host": "*.example.com", "tlsSecret": "9", "className": "0"},
    "image": {"tag": "1.0", "pullSecrets": ["1e3"]},
    "pod": {"priorityClassName": "no"},
    "gpu": {"runtimeClassName": "null"},
    "serviceAccount": {"name": "5"},
}


def as_release(name: str, values: Values) -> str:
    """The manifests of a release of that name, as text."""
    arguments = ["template", name, str(CHART), "--kube-version", KUBERNETES, "--values", "-"]
    return helm(*arguments, stdin=yaml.safe_dump(values))


def keys_said_twice(text: str) -> list[str]:
    """Paths of YAML mappings' keys that stand there more than once: parsers differ in which one they take."""
    found = []

    def walk(node: yaml.Node, path: str) -> None:
        if isinstance(node, yaml.MappingNode):
            names = Counter(str(key.value) for key, _ in node.value)
            found.extend(f"{path}.{name}" for name, count in names.items() if count > 1)
            for key, value in node.value:
                walk(value, f"{path}.{key.value}")
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, path)

    for document in yaml.compose_all(text):
        if document is not None:
            walk(document, "")
    return found


def test_a_label_that_two_values_set_is_said_once() -> None:
    assert keys_said_twice("a: {b: 1, b: 2}") == [".a.b"]
    assert keys_said_twice(as_release("chat", LABELLED)) == []
    manifests = render(LABELLED)
    assert manifests.one("ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    assert manifests.one("Service", "chat-internlm-chat")["metadata"]["labels"]["release"] == "common"
    assert manifests.workload["spec"]["template"]["metadata"]["labels"]["release"] == "pod"


def test_a_build_of_ones_own_has_a_version_that_labels_and_images_can_have(tmp_path: Path) -> None:
    helm("package", str(CHART), "--app-version", "0.1.0+site1", "--destination", str(tmp_path))
    manifests = render({"mode": "cpu"}, chart=next(tmp_path.glob("*.tgz")))
    assert manifests.workload["metadata"]["labels"]["app.kubernetes.io/version"] == "0.1.0_site1"
    assert manifests.server["image"].endswith(":0.1.0_site1")


def test_where_the_metrics_are_is_said_once_and_by_the_chart() -> None:
    values: Values = {"monitoring": {"scrape": "annotations"}, "pod": {"annotations": {"prometheus.io/port": "1"}}}
    assert keys_said_twice(as_release("chat", values)) == []
    assert render(values).workload["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "6007"


@pytest.mark.parametrize("name", ["r123", "true", "null"])
def test_labels_are_strings_whatever_the_release_is_called(name: str) -> None:
    for manifest in yaml.safe_load_all(as_release(name, {})):
        labels = manifest["metadata"]["labels"]
        assert [value for value in labels.values() if not isinstance(value, str)] == []
        assert labels["app.kubernetes.io/instance"] == name


@pytest.mark.parametrize("name", ["123", "a.b"])
def test_a_release_whose_name_no_service_can_have_is_told_the_way_out(name: str) -> None:
    with pytest.raises(Exception, match="Set fullnameOverride"):
        as_release(name, {"fullnameOverride": ""})
    assert as_release(name, {"fullnameOverride": "chat"})


def test_names_that_look_like_something_else_stay_strings() -> None:
    manifests = render(ODD)
    pod = manifests.pod
    assert manifests.settings["INTERNLM_MODEL_DIR"] == "/models/a: b"
    assert pod["imagePullSecrets"] == [{"name": "1e3"}]
    assert (pod["priorityClassName"], pod["runtimeClassName"], pod["serviceAccountName"]) == ("no", "null", "5")
    assert {each["name"]: each["secret"]["secretName"] for each in pod["volumes"] if "secret" in each} == {
        "hub-token": "456",
        "api-keys": "123",
    }
    ingress = manifests.one("Ingress")["spec"]
    assert ingress["rules"][0]["host"] == "*.example.com"
    assert ingress["tls"] == [{"secretName": "9", "hosts": ["*.example.com"]}]
    assert manifests.one("PersistentVolumeClaim")["spec"]["storageClassName"] == "1"


def test_a_path_that_would_leave_the_volume_is_still_refused() -> None:
    assert "/model/path" in refusal({"model": {"path": "../x"}})
