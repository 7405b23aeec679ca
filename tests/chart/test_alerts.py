"""The alerts fire when they should and stay silent when they should, as promtool sees it; monitors find the pods."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.helm import CHART, Manifests, Values, refusal, render
from tests.support.prometheus import needs_promtool, promtool, rule_test, write_rules

VALUES: Values = {
    "monitoring": {"scrape": "serviceMonitor", "rules": True, "labels": {"release": "kps"}},
    "replicas": 4,
    "storage": {"accessMode": "ReadWriteMany"},
}
LABELS = 'namespace="models",job="chat-internlm-chat",pod="chat-0",instance="10.0.0.1:6007"'
SERIES = {"namespace": "models", "job": "chat-internlm-chat", "pod": "chat-0", "instance": "10.0.0.1:6007"}
SECOND_POD = 'up{namespace="models",job="chat-internlm-chat",pod="chat-1"}'
JOB = {"namespace": "models", "job": "chat-internlm-chat"}

STARTED = "process_start_time_seconds"


def ready(values: str, *, up: str) -> dict[str, str]:
    return {f"internlm_ready{{{LABELS}}}": values, f"up{{{LABELS}}}": up}


def started(*seconds: int) -> dict[str, str]:
    """The start of the process, one a minute."""
    return {f"{STARTED}{{{LABELS}}}": " ".join(f"{each}x3" for each in seconds)}


def ended(**outcomes: str) -> dict[str, str]:
    return {f'internlm_requests_total{{{LABELS},outcome="{name}"}}': values for name, values in outcomes.items()}


def answered(*, ok: str, full: str, route: str = "/v1/chat") -> dict[str, str]:
    """Answers of one of the chat's routes: 200, and 429."""
    chat = f'internlm_http_requests_total{{{LABELS},route="{route}",method="POST",status="%s"}}'
    return {chat % 200: ok, chat % 429: full}


def waited(*, short: str, long: str) -> dict[str, str]:
    """Waits of at most 30 seconds, and of at most 60."""
    bucket = f'internlm_request_queue_time_seconds_bucket{{{LABELS},le="%s"}}'
    return {bucket % "30": short, bucket % "60": long, bucket % "+Inf": long}


def degraded(values: str) -> dict[str, str]:
    return {f'internlm_engine_degraded{{{LABELS},path="flash_decode"}}': values}


def of_pod(at: int) -> str:
    return f'namespace="models",job="chat-internlm-chat",pod="chat-{at}",instance="10.0.0.{at}:6007"'


def pods(*values: str) -> dict[str, str]:
    """Whether each of some pods is ready."""
    return {f"internlm_ready{{{of_pod(at)}}}": each for at, each in enumerate(values)}


def models(*manifests: str, seen: tuple[str, ...] = ("1x1200",) * 3) -> dict[str, str]:
    """Which model each of some pods has, and when it could be scraped."""
    series = 'internlm_model_info{%s,model="internlm3",revision="",manifest="%s"}'
    return {series % (of_pod(at), each): seen[at] for at, each in enumerate(manifests)}


# alert -> name of the case -> (series over time in 15 s steps, minute to look at, labels of the firing alert or None)
CASES: dict[str, dict[str, tuple[dict[str, str], int, dict[str, str] | None]]] = {
    "InternlmChatDown": {
        "a server that went away": ({f"up{{{LABELS}}}": "1x20 0x40"}, 14, JOB),
        "a pod that vanished altogether": ({f"up{{{LABELS}}}": "1x20 stale"}, 14, JOB),
        "a short restart": ({f"up{{{LABELS}}}": "1x20 0x12 1x40"}, 14, None),
        "a first install that downloads": ({f"up{{{LABELS}}}": "0x100"}, 20, None),
        "one of two pods": (
            {f"up{{{LABELS}}}": "1x20 0x60", 'up{namespace="models",job="chat-internlm-chat",pod="chat-1"}': "1x80"},
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
    "InternlmChatReplicaMissing": {
        "one of four that cannot be scraped": (pods("1x600", "1x600", "1x600", "1x20 stale"), 70, JOB),
        "one of four whose engine failed": (pods("1x600", "1x600", "1x600", "1x20 0x600"), 70, JOB),
        "one that never came": (pods("1x600", "1x600", "1x600"), 70, JOB),
        "all of them": (pods("1x600", "1x600", "1x600", "1x600"), 70, None),
        "one that is replaced": (pods("1x600", "1x600", "1x600", "1x20 0x60 1x600"), 70, None),
        "none, which another alert is for": (pods("0x600", "0x600", "0x600", "0x600"), 70, None),
    },
    "InternlmChatModelsDiffer": {
        "a pod whose branch had moved on": (pods("1x1200", "1x1200", "1x1200") | models("a", "a", "b"), 250, JOB),
        "the same of all": (pods("1x1200", "1x1200") | models("a", "a"), 250, None),
        "one that does not answer": (pods("1x1200", "1x1200", "0x600") | models("a", "a", "b"), 250, None),
        "an upgrade": (
            pods("1x1200", "1x20 stale", "_x40 1x1200")
            | models("b", "a", "b", seen=("1x1200", "1x20 stale", "1x1200")),
            250,
            None,
        ),
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
    "InternlmChatLostReady": {
        "a model that stopped answering": (ready("1x20 0x300", up="1x320"), 16, JOB),
        "it still does not, an hour later": (ready("1x20 0x600", up="1x620"), 120, JOB),
        "a series that went away while the server runs": (ready("1x20 stale", up="1x320"), 16, JOB),
        "a server that comes up now and then and never answers": (
            ready("1x20 0x300", up="1x20 0x8 1x2 0x10 1x2 0x10 1x2 0x10 1x2 0x10 1x60"),
            18,
            JOB,
        ),
        "the engine started again": (ready("1x20 0x36 1x100", up="1x160"), 16, None),
        "a new pod that loads for long": (
            ready("1x20 0x300", up="1x320") | {f'internlm_engine_state{{{LABELS},state="loading"}}': "0x20 1x300"},
            30,
            None,
        ),
        "another pod answers": (
            ready("1x20 0x300", up="1x320")
            | {'internlm_ready{namespace="models",job="chat-internlm-chat",pod="chat-1"}': "1x320"},
            20,
            None,
        ),
        "a first install": (ready("0x300", up="1x300"), 60, None),
        "a server that is down": (ready("1x20 stale", up="1x20 0x300"), 30, None),
    },
    "InternlmChatServerRestarting": {
        "a worker that dies every minute": (started(100, 104, 108, 112, 112), 4, SERIES),
        "twice in an hour": (started(100, 104, 108, 108, 108), 4, None),
        "another pod in its place": (
            {f"process_start_time_seconds{{{LABELS}}}": "100x20 stale", SECOND_POD.replace("up", STARTED): "400x80"},
            14,
            None,
        ),
    },
    "InternlmChatFailing": {
        "one in ten past the deadline": (ended(stop="0+90x100", deadline="0+10x100", error="0x100"), 21, JOB),
        "one in ten in an error": (ended(stop="0+90x100", deadline="0x100", error="0+10x100"), 21, JOB),
        "one in a hundred": (ended(stop="0+99x100", deadline="0+1x100", error="0x100"), 21, None),
        "clients that go away, or ask too much": (
            ended(stop="0+50x100", cancelled="0+25x100", rejected="0+25x100"),
            21,
            None,
        ),
        "no traffic": (ended(stop="5x100", deadline="5x100"), 21, None),
        "a short burst": (ended(stop="0+90x100", deadline="0x40 0+90x4 360x60"), 24, None),
    },
    "InternlmChatRejecting": {
        "one in ten for long": (answered(ok="0+90x100", full="0+10x100"), 20, JOB),
        **{
            f"the same of clients of {route}": (
                answered(ok="0+90x100", full="0x100") | answered(ok="0+90x100", full="0+20x100", route=route),
                20,
                JOB,
            )
            for route in ("/v1/chat/completions", "/v1/completions", "/v1/responses")
        },
        "of other routes": (
            answered(ok="0+90x100", full="0x100") | answered(ok="0+90x100", full="0+20x100", route="/v1/models"),
            20,
            None,
        ),
        "one in a hundred": (answered(ok="0+99x100", full="0+1x100"), 20, None),
        "prompts that are too long": (
            answered(ok="0+90x100", full="0x100")
            | {f'internlm_requests_total{{{LABELS},outcome="rejected"}}': "0+10x100"},
            20,
            None,
        ),
        "no traffic": (answered(ok="5x100", full="5x100"), 20, None),
        "a short burst": (answered(ok="0+90x100", full="0x40 0+90x4 360x60"), 16, None),
        "many probes and few chats": (
            answered(ok="0+9x100", full="0+1x100")
            | {f'internlm_http_requests_total{{{LABELS},route="/",method="GET",status="200"}}': "0+900x100"},
            20,
            JOB,
        ),
    },
    "InternlmChatQueueing": {
        "a minute in the queue": (waited(short="0x100", long="0+10x100"), 21, JOB),
        "one of twenty for long": (waited(short="0+19x100", long="0+20x100"), 21, None),
        "no traffic": (waited(short="5x100", long="9x100"), 21, None),
    },
    "InternlmChatDegraded": {
        "a path that is left out": (degraded("1x100"), 16, SERIES | {"path": "flash_decode"}),
        "a start that is tried again": (degraded("1x40 stale"), 16, None),
    },
    "InternlmChatEngineRestarting": {
        "again and again": ({f"internlm_engine_restarts_total{{{LABELS}}}": "0x20 1x20 2x20 3x40"}, 24, SERIES),
        "once": ({f"internlm_engine_restarts_total{{{LABELS}}}": "0x20 1x80"}, 20, None),
    },
}


@pytest.fixture(scope="module")
def manifests() -> Manifests:
    return render(VALUES)


def rules_of(manifests: Manifests) -> dict[str, dict[str, Any]]:
    """By the names of their alerts."""
    return {rule["alert"]: rule for rule in manifests.one("PrometheusRule")["spec"]["groups"][0]["rules"]}


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "case"), [(alert, case) for alert, cases in CASES.items() for case in cases], ids=lambda value: str(value)
)
def test_an_alert_knows(alert: str, case: str, manifests: Manifests, tmp_path: Path) -> None:
    series, minute, labels = CASES[alert][case]
    expected = []
    if labels is not None:
        severity = rules_of(manifests)[alert]["labels"]
        expected = [{"exp_labels": labels | severity, "exp_annotations": annotations(alert, manifests)}]
    look = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": expected}
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    rules = write_rules(manifests.one("PrometheusRule"), tmp_path)
    rule_test(rules, [{"interval": "15s", "input_series": inputs, "alert_rule_test": [look]}])


def annotations(alert: str, manifests: Manifests) -> dict[str, str]:
    """The rule's annotations as Prometheus fills them in for the case."""
    filled = {
        "{{ $labels.pod }}": "chat-0",
        "{{ $labels.path }}": "flash_decode",
        "{{ $value | humanizePercentage }}": "10%",
        "{{ $value | humanizeDuration }}": "57s",
        "{{ $value | humanize }}": "2" if alert == "InternlmChatModelsDiffer" else "3",
    }
    texts: dict[str, str] = dict(rules_of(manifests)[alert]["annotations"])
    for template, text in filled.items():
        texts = {key: value.replace(template, text) for key, value in texts.items()}
    return texts


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_rules(manifests: Manifests, tmp_path: Path) -> None:
    promtool("check", "rules", str(write_rules(manifests.one("PrometheusRule"), tmp_path)))


def test_every_alert_is_tried_both_ways(manifests: Manifests) -> None:
    alerts = set(rules_of(manifests))
    assert alerts == set(CASES)
    for cases in CASES.values():
        assert {labels is None for _, _, labels in cases.values()} == {True, False}


def test_every_alert_says_what_to_do(manifests: Manifests) -> None:
    for rule in rules_of(manifests).values():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert len(rule["annotations"]["description"]) > 60, rule["alert"]
        assert rule["annotations"]["runbook"].startswith(rule["alert"])


def test_an_operators_labels_are_on_every_alert_and_win() -> None:
    def labels(ours: Values) -> dict[str, dict[str, str]]:
        rules = rules_of(render(VALUES | {"monitoring": VALUES["monitoring"] | ours}))
        return {name: rule["labels"] for name, rule in rules.items()}

    plain = labels({})
    assert labels({"alertLabels": {"team": "ml"}}) == {name: each | {"team": "ml"} for name, each in plain.items()}
    assert labels({"alertLabels": {"severity": "page"}}) == {name: {"severity": "page"} for name in plain}
    assert labels({"alertLabels": None}) == plain


@pytest.mark.parametrize("label", [{"a-team": "ml"}, {"__name__": "x"}, {"team": 1}])
def test_what_is_no_label_of_an_alert_is_refused(label: dict[str, object]) -> None:
    assert "alertLabels" in refusal(VALUES | {"monitoring": VALUES["monitoring"] | {"alertLabels": label}})


def test_every_alert_has_a_runbook_and_no_runbook_is_left_over(manifests: Manifests) -> None:
    """The anchors are those that GitHub makes of a heading: its letters, lower case."""
    readme = (CHART / "README.md").read_text()
    sections = re.findall(r"^### (InternlmChat\w+)\n(\S.+\n\S.+)", readme, re.MULTILINE)
    alerts = sorted(rules_of(manifests))
    assert sorted(name for name, _ in sections) == alerts
    linked = render(VALUES | {"monitoring": VALUES["monitoring"] | {"runbookUrl": "https://wiki.internal/README.md"}})
    for alert in alerts:
        annotations = rules_of(linked)[alert]["annotations"]
        assert annotations["runbook_url"] == f"https://wiki.internal/README.md#{alert.lower()}"
        assert "runbook" not in annotations


def test_only_pods_that_there_can_be_several_of_are_compared() -> None:
    assert "InternlmChatModelsDiffer" in rules_of(render(VALUES))
    assert "InternlmChatModelsDiffer" not in rules_of(render(VALUES | {"replicas": 1}))


def test_replicas_are_missed_where_there_are_some_by_their_least_number() -> None:
    def wanted(values: Values) -> list[str]:
        rules = rules_of(render(VALUES | values))
        return [rule["expr"].split("< ")[1].split()[0] for name, rule in rules.items() if "Missing" in name]

    scaled = {"kind": "keda", "prometheusAddress": "http://p:9090", "maxReplicas": 9}
    assert wanted({}) == ["4"]
    assert wanted({"replicas": 1}) == []
    assert wanted({"autoscaling": scaled | {"minReplicas": 3}}) == ["3"]
    assert wanted({"autoscaling": scaled}) == []


def test_replicas_that_are_replaced_one_by_one_may_take_as_long_as_that() -> None:
    assert rules_of(render(VALUES | {"startupBudget": 100}))["InternlmChatModelsDiffer"]["for"] == "400s"


def test_the_not_ready_alert_waits_for_the_startup_budget() -> None:
    assert rules_of(render(VALUES | {"startupBudget": 777}))["InternlmChatNotReady"]["for"] == "777s"


def test_two_charts_of_one_release_have_each_its_own_alerts() -> None:
    """As a parent chart may have them: one that answers does not hide that the other does not."""
    one, other = (str(rules_of(render(VALUES | {"fullnameOverride": name}))) for name in ("chat-a", "chat-b"))
    assert 'job="chat-a"' in one
    assert other == one.replace("chat-a", "chat-b")


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_a_monitor_finds_the_metrics_port_and_names_the_job_after_the_workload(kind: str) -> None:
    scrape = kind[0].lower() + kind[1:]
    manifests = render({"monitoring": {"scrape": scrape, "interval": "30s", "labels": {"release": "kps"}}})
    monitor = manifests.one(kind)
    assert monitor["metadata"]["labels"]["release"] == "kps"
    (endpoint,) = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {
        "port": "metrics",
        "path": "/metrics",
        "interval": "30s",
        "relabelings": [{"targetLabel": "job", "replacement": "chat-internlm-chat"}],
    }
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
    assert "internlm-chat-overview" in config["data"]["internlm-chat-overview.json"]
    assert "namespace" not in config["metadata"]


def test_dashboards_go_where_a_sidecar_looks_that_looks_in_its_own_namespace_alone() -> None:
    made = render({"monitoring": {"dashboards": {"enabled": True, "namespace": "monitoring"}}})
    config = made.one("ConfigMap", "models-chat-internlm-chat-dashboards")
    assert config["metadata"]["namespace"] == "monitoring"
    assert made.one("Deployment")["metadata"].get("namespace") is None
