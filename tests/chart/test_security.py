"""Restricted Pod Security, secrets by reference, and who may talk to whom."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.helm import CHART, KUBERNETES, NAME, RELEASE, Manifest, Manifests, Values, helm, render

CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
ALLOWED_VOLUMES = {"configMap", "downwardAPI", "emptyDir", "image", "persistentVolumeClaim", "projected", "secret"}


def pods(manifests: Manifests) -> list[Manifest]:
    return [manifests.pod, manifests.one("Pod")["spec"]]


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def restricted_violations(pod: Manifest) -> list[str]:
    """Every rule of the `restricted` Pod Security standard (which includes `baseline`) that the pod breaks."""
    found = [field for field in ("hostNetwork", "hostPID", "hostIPC") if pod.get(field)]
    context = pod.get("securityContext", {})
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            found.append(f"volume {volume['name']} is of kind {kinds}")
    if context.get("sysctls"):
        found.append("sysctls")
    for container in containers(pod):
        found += [f"{container['name']}: {rule}" for rule in container_violations(container, context)]
    return found


def container_violations(container: Manifest, pod_context: Manifest) -> list[str]:
    own: dict[str, Any] = container.get("securityContext", {})
    context = pod_context | own
    capabilities = own.get("capabilities", {})
    rules = {
        "privileged": own.get("privileged") is True,
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is not False,
        "does not drop ALL": "ALL" not in capabilities.get("drop", []),
        "adds capabilities": bool(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}),
        "runAsNonRoot is not true": context.get("runAsNonRoot") is not True,
        "runs as root": context.get("runAsUser") == 0,
        "no seccomp profile": context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"),
        "host ports": any(port.get("hostPort") for port in container.get("ports", [])),
        "unmasked /proc": own.get("procMount", "Default") != "Default",
        "host process": bool(context.get("windowsOptions", {}).get("hostProcess")),
    }
    return [rule for rule, broken in rules.items() if broken]


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_every_pod_passes_the_restricted_pod_security_standard(file: Path) -> None:
    for pod in pods(render(files=[file])):
        assert restricted_violations(pod) == []


def test_the_check_itself_sees_what_is_not_restricted() -> None:
    pod = {
        "hostPID": True,
        "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "securityContext": {"privileged": True}, "ports": [{"hostPort": 80}]}],
    }
    assert len(restricted_violations(pod)) == 8


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_every_root_is_read_only_and_no_token_or_service_link_is_mounted(file: Path) -> None:
    manifests = render(files=[file])
    for pod in pods(manifests):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "links would inject INTERNLM_* names the server refuses"
        assert all(c["securityContext"]["readOnlyRootFilesystem"] is True for c in containers(pod))
    assert manifests.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_what_is_written_has_a_volume() -> None:
    manifests = render()
    for container in (manifests.download, manifests.server):
        assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp", "/cache"}


def test_a_cluster_that_chooses_users_itself_can_drop_ours_as_the_readme_says() -> None:
    (said,) = re.findall(r"^\| OpenShift \| `(.+)` \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    text = helm("template", RELEASE, str(CHART), "--kube-version", KUBERNETES, "--set", said)
    manifests = Manifests(each for each in yaml.safe_load_all(text) if each)
    for pod in pods(manifests):
        assert set(pod["securityContext"]) == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}


def test_the_service_account_is_the_operators_to_name_or_to_leave_out() -> None:
    own = render({"serviceAccount": {"name": "llm", "annotations": {"a": "b"}}})
    assert own.one("ServiceAccount")["metadata"]["annotations"] == {"a": "b"}
    assert own.pod["serviceAccountName"] == own.one("ServiceAccount")["metadata"]["name"] == "llm"
    assert not render({"serviceAccount": {"create": False}}).all("ServiceAccount")
    assert render({"serviceAccount": {"create": False}}).pod["serviceAccountName"] == "default"


def test_api_keys_are_a_file_in_server_and_test_pod() -> None:
    manifests = render({"apiKeys": {"secretName": "keys", "key": "list"}})
    assert manifests.settings["INTERNLM_API_KEYS_FILE"] == "/etc/internlm-chat/api/list"
    mount = {"name": "api-keys", "mountPath": "/etc/internlm-chat/api", "readOnly": True}
    for pod in pods(manifests):
        secret = {"secretName": "keys", "items": [{"key": "list", "path": "list"}]}
        assert {"name": "api-keys", "secret": secret} in pod["volumes"], "that key, and no other of the Secret"
        assert mount in pod["containers"][0]["volumeMounts"]
    assert mount not in manifests.download["volumeMounts"]
    assert "INTERNLM_API_KEYS_FILE" not in render().settings


@pytest.mark.parametrize("file", CI_VALUES, ids=lambda file: file.name)
def test_secrets_are_referred_to_and_never_rendered(file: Path) -> None:
    manifests = render(files=[file])
    assert not manifests.all("Secret")
    for pod in pods(manifests):
        assert "secretKeyRef" not in str(pod), "a secret in the environment shows in a crash dump"


def test_the_network_policy_is_a_flag() -> None:
    assert not render().all("NetworkPolicy")
    policy = render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")["spec"]
    assert "server" in policy["podSelector"]["matchExpressions"][1]["values"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == ["http", "metrics"]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 5353, 443}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("", 443), ("https://hub", 443), ("http://hub", 80), ("http://hub:8080/x", 8080), ("https://hub:8443", 8443)],
)
def test_the_hub_can_be_reached_at_its_port(endpoint: str, port: int) -> None:
    values: Values = {"networkPolicy": {"enabled": True}, "model": {"endpoint": endpoint}}
    egress = render(values).one("NetworkPolicy")["spec"]["egress"]
    assert {p["port"] for rule in egress for p in rule["ports"]} == {53, 5353, port}


def test_more_can_be_let_out() -> None:
    proxy = {"ports": [{"port": 3128, "protocol": "TCP"}], "to": [{"podSelector": {"matchLabels": {"app": "proxy"}}}]}
    egress = render({"networkPolicy": {"enabled": True, "extraEgress": [proxy]}}).one("NetworkPolicy")["spec"]["egress"]
    assert proxy in egress


def test_an_air_gap_lets_nothing_out() -> None:
    values: Values = {"airGap": True, "model": {"source": "volume"}, "storage": {"existingClaim": "models"}}
    assert render(values).one("NetworkPolicy")["spec"]["egress"] == []


def test_callers_can_be_limited_and_the_test_pod_still_gets_in() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"name": "ingress"}}}
    scraper = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    values: Values = {"networkPolicy": {"enabled": True, "allowFrom": [peer], "allowMetricsFrom": [scraper]}}
    manifests = render(values)
    api, metrics = manifests.one("NetworkPolicy")["spec"]["ingress"]
    assert peer in api["from"]
    assert scraper in metrics["from"]
    labels = manifests.one("Pod")["metadata"]["labels"]
    for rule in (api, metrics):
        assert rule["from"][-1]["podSelector"]["matchLabels"].items() <= labels.items()


def test_no_ingress_or_service_for_clients_leads_to_the_metrics() -> None:
    manifests = render({"ingress": {"enabled": True}})
    assert [port["name"] for port in manifests.one("Service", NAME)["spec"]["ports"]] == ["http"]
    (path,) = manifests.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": NAME, "port": {"name": "http"}}
