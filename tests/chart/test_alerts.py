"""The alerts fire when they should and stay silent when they should, as promtool sees it; monitors find the pods."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import Manifests, Values, render
from tests.support.prometheus import needs_promtool, promtool, rule_test, write_rules

VALUES: Values = {"monitoring": {"scrape": "serviceMonitor", "rules": True, "labels": {"release": "kps"}}}
LABELS = 'namespace="models",job="chat",pod="chat-0",instance="10.0.0.1:6007"'
SERIES = {"namespace": "models", "job": "chat", "pod": "chat-0", "instance": "10.0.0.1:6007"}
SECOND_POD = 'up{namespace="models",job="chat",pod="chat-1"}'
JOB = {"namespace": "models", "job": "chat"}

# alert -> name of the case -> (series over time in 15 s steps, minute to look at, labels of the firing alert or None)
CASES: dict[str, dict[str, tuple[dict[str, str], int, dict[str, str] | None]]] = {
    "InternlmChatDown": {
        "a server that went away": ({f"up{{{LABELS}}}": "1x20 0x40"}, 14, JOB),
        "a pod that vanished altogether": ({f"up{{{LABELS}}}": "1x20 stale"}, 14, JOB),
        "a short restart": ({f"up{{{LABELS}}}": "1x20 0x12 1x40"}, 14, None),
        "a first install that downloads": ({f"up{{{LABELS}}}": "0x100"}, 20, None),
        "one of two pods": (
            {f"up{{{LABELS}}}": "1x20 0x60", 'up{namespace="models",job="chat",pod="chat-1"}': "1x80"},
            15,
            None,
        ),
        "another release": ({'up{namespace="models",job="other"}': "1x20 0x60", f"up{{{LABELS}}}": "1x100"}, 15, None),
    },
    "InternlmChatNotReady": {
        "never ready within the budget": ({f"internlm_ready{{{LABELS}}}": "0x600"}, 61, JOB),
        "no pod at all": ({f"up{{{LABELS}}}": "0x600"}, 61, JOB),
        "still within the budget": ({f"internlm_ready{{{LABELS}}}": "0x600"}, 59, None),
        "ready after a while": ({f"internlm_ready{{{LABELS}}}": "0x100 1x500"}, 70, None),
    },
    "InternlmChatDecodeStalled": {
        "an engine that takes no step": (
            {
                f"internlm_num_requests_running{{{LABELS}}}": "0x4 3x40",
                f"internlm_engine_steps_total{{{LABELS}}}": "0+50x4 200x40",
                f"internlm_generation_tokens_total{{{LABELS}}}": "0+50x4 200x40",
            },
            6,
            SERIES,
        ),
        "steps that bring no token": (
            {
                f"internlm_num_requests_running{{{LABELS}}}": "3x100",
                f"internlm_engine_steps_total{{{LABELS}}}": "0+50x100",
                f"internlm_generation_tokens_total{{{LABELS}}}": "7x100",
            },
            13,
            SERIES,
        ),
        "an idle engine": (
            {
                f"internlm_num_requests_running{{{LABELS}}}": "0x100",
                f"internlm_engine_steps_total{{{LABELS}}}": "9x100",
                f"internlm_generation_tokens_total{{{LABELS}}}": "9x100",
            },
            20,
            None,
        ),
        "a request that has just begun": (
            {
                f"internlm_num_requests_running{{{LABELS}}}": "0x60 1x4",
                f"internlm_engine_steps_total{{{LABELS}}}": "9x60 9+1x4",
                f"internlm_generation_tokens_total{{{LABELS}}}": "9x64",
            },
            16,
            None,
        ),
        "a busy engine": (
            {
                f"internlm_num_requests_running{{{LABELS}}}": "64x100",
                f"internlm_engine_steps_total{{{LABELS}}}": "0+300x100",
                f"internlm_generation_tokens_total{{{LABELS}}}": "0+9000x100",
            },
            20,
            None,
        ),
    },
    "InternlmChatRejecting": {
        "one in ten for long": (
            {
                f'internlm_requests_total{{{LABELS},outcome="stop"}}': "0+90x100",
                f'internlm_requests_total{{{LABELS},outcome="rejected"}}': "0+10x100",
            },
            20,
            JOB,
        ),
        "one in a hundred": (
            {
                f'internlm_requests_total{{{LABELS},outcome="stop"}}': "0+99x100",
                f'internlm_requests_total{{{LABELS},outcome="rejected"}}': "0+1x100",
            },
            20,
            None,
        ),
        "no traffic": (
            {
                f'internlm_requests_total{{{LABELS},outcome="stop"}}': "5x100",
                f'internlm_requests_total{{{LABELS},outcome="rejected"}}': "5x100",
            },
            20,
            None,
        ),
        "a short burst": (
            {
                f'internlm_requests_total{{{LABELS},outcome="stop"}}': "0+90x100",
                f'internlm_requests_total{{{LABELS},outcome="rejected"}}': "0x40 0+90x4 360x60",
            },
            16,
            None,
        ),
    },
    "InternlmChatEngineRestarting": {
        "again and again": ({f"internlm_engine_restarts_total{{{LABELS}}}": "0x20 1x20 2x20 3x40"}, 24, SERIES),
        "once": ({f"internlm_engine_restarts_total{{{LABELS}}}": "0x20 1x80"}, 20, None),
    },
}


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return render(VALUES)


def rule_of(manifests: Manifests, alert: str) -> dict[str, Any]:
    (rule,) = [r for r in manifests.one("PrometheusRule")["spec"]["groups"][0]["rules"] if r["alert"] == alert]
    return rule  # type: ignore[no-any-return]


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "case"), [(alert, case) for alert, cases in CASES.items() for case in cases], ids=lambda value: str(value)
)
def test_an_alert_knows(alert: str, case: str, manifests: Manifests, tmp_path: Path) -> None:
    series, minute, labels = CASES[alert][case]
    expected = []
    if labels is not None:
        severity = rule_of(manifests, alert)["labels"]
        expected = [{"exp_labels": labels | severity, "exp_annotations": annotations(alert, manifests)}]
    look = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    rules = write_rules(manifests.one("PrometheusRule"), tmp_path)
    rule_test(rules, [{"interval": "15s", "input_series": inputs, "alert_rule_test": [look]}])


def annotations(alert: str, manifests: Manifests) -> dict[str, str]:
    """The rule's annotations as Prometheus fills them in for the case."""
    filled = {"{{ $labels.pod }}": "chat-0", "{{ $value | humanizePercentage }}": "10%", "{{ $value | humanize }}": "3"}
    texts: dict[str, str] = dict(rule_of(manifests, alert)["annotations"])
    for template, text in filled.items():
        texts = {key: value.replace(template, text) for key, value in texts.items()}
    return texts


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_rules(manifests: Manifests, tmp_path: Path) -> None:
    promtool("check", "rules", str(write_rules(manifests.one("PrometheusRule"), tmp_path)))


def test_every_alert_is_tried_both_ways(manifests: Manifests) -> None:
    alerts = {rule["alert"] for rule in manifests.one("PrometheusRule")["spec"]["groups"][0]["rules"]}
    assert alerts == set(CASES)
    for cases in CASES.values():
        assert {labels is None for _, _, labels in cases.values()} == {True, False}


def test_every_alert_says_what_to_do(manifests: Manifests) -> None:
    for rule in manifests.one("PrometheusRule")["spec"]["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert len(rule["annotations"]["description"]) > 60, rule["alert"]


def test_the_not_ready_alert_waits_for_the_startup_budget() -> None:
    assert rule_of(render(VALUES | {"startupBudget": 777}), "InternlmChatNotReady")["for"] == "777s"


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_a_monitor_finds_the_metrics_port_and_names_the_job_after_the_release(kind: str) -> None:
    scrape = kind[0].lower() + kind[1:]
    manifests = render({"monitoring": {"scrape": scrape, "interval": "30s", "labels": {"release": "kps"}}})
    monitor = manifests.one(kind)
    assert monitor["metadata"]["labels"]["release"] == "kps"
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/instance"
    (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "metrics", "path": "/metrics", "interval": "30s"}
    target = manifests.workload["spec"]["template"]
    if kind == "ServiceMonitor":
        target = manifests.one("Service", "chat-internlm-chat-pods")
        assert target["spec"]["ports"][0]["name"] == "metrics"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= target["metadata"]["labels"].items()


def test_annotations_lead_to_the_metrics_port() -> None:
    manifests = render({"monitoring": {"scrape": "annotations"}})
    annotations = manifests.workload["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == manifests.settings["INTERNLM_METRICS_PORT"]
    assert annotations["prometheus.io/scrape"] == "true"


def test_dashboards_are_labelled_for_grafanas_sidecar() -> None:
    made = render({"monitoring": {"dashboards": {"enabled": True, "label": "dash", "folder": "Models"}}})
    config = made.one("ConfigMap", "chat-internlm-chat-dashboards")
    assert config["metadata"]["labels"]["dash"] == "1"
    assert config["metadata"]["annotations"] == {"grafana_folder": "Models"}
    assert "internlm-chat-overview" in config["data"]["overview.json"]
