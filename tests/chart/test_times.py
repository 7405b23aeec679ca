"""One request timeout and one startup budget decide every other time span."""

import pytest

from tests.support.helm import Values, render

NGINX = "nginx.ingress.kubernetes.io/"


@pytest.mark.parametrize(("timeout", "delay"), [(1, 0), (300, 5), (900, 30), (86400, 5)])
def test_one_request_timeout_decides_deadline_drain_grace_and_proxies(timeout: int, delay: int) -> None:
    manifests = render(
        {
            "requestTimeout": timeout,
            "rollout": {"preStopDelay": delay},
            "ingress": {"enabled": True},
            "gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
        }
    )
    settings = manifests.settings
    assert settings["INTERNLM_REQUEST_TIMEOUT"] == str(timeout)
    assert manifests.server["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(delay)]
    draining = delay + int(settings["INTERNLM_DRAIN_DELAY"]) + timeout
    assert manifests.pod["terminationGracePeriodSeconds"] > draining
    annotations = manifests.one("Ingress")["metadata"]["annotations"]
    assert int(annotations[NGINX + "proxy-read-timeout"]) > timeout
    assert annotations[NGINX + "proxy-send-timeout"] == annotations[NGINX + "proxy-read-timeout"]
    (rule,) = manifests.one("HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": f"{timeout + 10}s", "backendRequest": f"{timeout + 10}s"}
    assert manifests.one("Pod")["spec"]["activeDeadlineSeconds"] > timeout


def test_a_longer_grace_period_is_the_operators_to_choose() -> None:
    assert render({"rollout": {"gracePeriod": 1000}}).pod["terminationGracePeriodSeconds"] == 1000


@pytest.mark.parametrize("budget", [60, 301, 3600, 20000])
def test_one_startup_budget_decides_probe_deadline_and_download(budget: int) -> None:
    manifests = render({"startupBudget": budget})
    probe = manifests.server["startupProbe"]
    assert budget <= probe["periodSeconds"] * probe["failureThreshold"] < budget + probe["periodSeconds"]
    assert manifests.settings["INTERNLM_DOWNLOAD_BUDGET"] == str(budget)
    progress = manifests.one("Deployment")["spec"]["progressDeadlineSeconds"]
    assert progress >= budget + manifests.pod["terminationGracePeriodSeconds"], "the old pod's last answer comes first"


def test_the_three_probes_ask_three_questions() -> None:
    server = render().server
    assert server["startupProbe"]["httpGet"] == {"path": "/", "port": "http"}
    assert server["readinessProbe"]["httpGet"] == {"path": "/", "port": "http"}
    assert server["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "4194304"), ({"maxBodyBytes": 20_000_000}, "20000000"), ({"maxBodyBytes": 1024}, "1024")],
)
def test_the_ingress_lets_through_what_the_server_takes(settings: Values, expected: str) -> None:
    annotations = render({"settings": settings, "ingress": {"enabled": True}}).one("Ingress")["metadata"]["annotations"]
    assert annotations[NGINX + "proxy-body-size"] == expected


def test_streams_are_not_held_back_and_own_annotations_win() -> None:
    own = {NGINX + "proxy-read-timeout": "5", "cert-manager.io/issuer": "ours"}
    annotations = render({"ingress": {"enabled": True, "annotations": own}}).one("Ingress")["metadata"]["annotations"]
    assert annotations[NGINX + "proxy-buffering"] == "off"
    assert annotations[NGINX + "proxy-http-version"] == "1.1"
    assert annotations.items() >= own.items()
