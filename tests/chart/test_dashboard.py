"""Every query of the dashboard and every alert, asked of a real Prometheus that scrapes the service under load."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from charts import dashboards
from service.engine.base import EngineState, EngineStats, EngineStatus
from service.engine.fake import FakeScript
from service.metrics import Metrics
from tests.api.conftest import Service, Start
from tests.api.conftest import model_dir as model_dir
from tests.api.conftest import start as start
from tests.chart.test_helm_test import free_port
from tests.support.helm import NAME, NAMESPACE, render
from tests.support.prometheus import Prometheus, needs_promtool, run_prometheus, write_rules
from tests.unit.test_metrics import GPU, INFO

RULES = render({"monitoring": {"scrape": "serviceMonitor", "rules": True}}).one("PrometheusRule")
ALERTS = {rule["alert"]: rule["expr"] for rule in RULES["spec"]["groups"][0]["rules"]}
POD = f"{NAME}-7d9f8b6c5-x2x4z"
KEDA = {
    "mode": "cpu",
    "autoscaling": {"kind": "keda", "prometheusAddress": "http://prometheus"},
    "monitoring": {"scrape": "podMonitor"},
}
WITHOUT_GPU = re.compile("internlm_gpu_memory|internlm_engine_degraded")


def for_prometheus(query: str) -> str:
    """The query with Grafana's variables filled in: this release, all instances, an interval of five scrapes."""
    chosen = {"$namespace": NAMESPACE, "$job": NAME, "$instance": ".*", "$__rate_interval": "5s"}
    for name, value in chosen.items():
        query = query.replace(name, value)
    return query


async def ask(service: Service) -> int:
    return (await service.ask(max_new_tokens=40)).status_code


async def load(service: Service, prometheus: Prometheus) -> Counter[int]:
    """Waves of more questions than may wait, until Prometheus has seen enough of them to speak of rates."""
    answers: Counter[int] = Counter()
    rate = 'rate(internlm_requests_total{outcome="rejected"}[5s]) > 0'
    while not await prometheus.query(rate):
        answers.update(await asyncio.gather(*(ask(service) for _ in range(24))))
    return answers


Observe = Callable[..., AbstractAsyncContextManager[tuple[Service, Prometheus]]]


@pytest.fixture
def observe(start: Start, tmp_path: Path) -> Observe:
    """Starts a service and the Prometheus that watches it, its jobs named as the chart's monitors name them."""

    @asynccontextmanager
    async def run(step_seconds: float = 0.005, **settings: Any) -> AsyncIterator[tuple[Service, Prometheus]]:
        metrics, port = free_port(), free_port()
        service = await start(script=FakeScript(step_seconds=step_seconds), metrics_port=metrics, **settings)
        write_rules(RULES, tmp_path)
        labels = {"job": NAME, "namespace": NAMESPACE, "pod": POD}
        async with run_prometheus(tmp_path, port, metrics, labels) as prometheus:
            yield service, prometheus

    return run


@pytest.fixture
async def observed(observe: Observe) -> AsyncIterator[tuple[Service, Prometheus]]:
    async with observe(max_queue=4) as both:
        yield both


@needs_promtool
@pytest.mark.slow
async def test_every_panel_shows_something_under_load(observed: tuple[Service, Prometheus]) -> None:
    service, prometheus = observed
    answers = await load(service, prometheus)
    assert set(answers) == {200, 429}
    empty = [query for query in dashboards.queries() if not await prometheus.query(for_prometheus(query))]
    assert [query for query in empty if not WITHOUT_GPU.search(query)] == []
    elsewhere = [for_prometheus(query.replace("$namespace", "another")) for query in dashboards.queries()]
    assert [query for query in elsewhere if await prometheus.query(query)] == [], "a release named alike elsewhere"


@needs_promtool
async def test_the_autoscaler_gets_a_number_for_this_releases_pods(observed: tuple[Service, Prometheus]) -> None:
    _, prometheus = observed
    query = render(KEDA).one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (found,) = await prometheus.until(query)
    assert float(found["value"][1]) == 0, "nobody waits"
    assert await prometheus.query(query.replace(NAME, "chat")) == [], "a release whose name begins like this one's"


@needs_promtool
@pytest.mark.slow
async def test_alerts_that_should_speak_do_and_the_others_are_silent(observed: tuple[Service, Prometheus]) -> None:
    service, prometheus = observed
    await load(service, prometheus)
    assert await speaking(prometheus) == {"InternlmChatRejecting"}


@needs_promtool
@pytest.mark.slow
async def test_alerts_of_an_outage_speak(observe: Observe) -> None:
    """Every answer takes longer than it may; then the model answers no more."""
    async with observe(step_seconds=0.05, request_timeout=1.0) as (service, prometheus):
        while "InternlmChatFailing" not in await speaking(prometheus):
            assert await asyncio.gather(*(ask(service) for _ in range(8))) == [504] * 8
        assert await speaking(prometheus) == {"InternlmChatFailing"}
        assert await prometheus.query("process_start_time_seconds"), "what a restart is known by"
        service.running.lifecycle.begin_drain()
        await prometheus.until("internlm_ready == 0")
        assert "InternlmChatLostReady" in await speaking(prometheus)


async def speaking(prometheus: Prometheus) -> set[str]:
    """Alerts whose expression gives something now."""
    return {name for name, expression in ALERTS.items() if await prometheus.query(sooner(expression))}


def sooner(expression: str) -> str:
    """The same expression over the seconds a test has instead of minutes."""
    return expression.replace("[5m]", "[5s]").replace("[2m]", "[5s]").replace("[10m]", "[5s]")


def test_no_query_names_a_series_the_service_does_not_have() -> None:
    everything = EngineStatus(state=EngineState.READY, info=INFO, stats=EngineStats(gpus=[GPU]))
    metrics = Metrics(lambda: everything, lambda: True)
    metrics.http_requests.labels("/", "GET", "200").inc()
    metrics.model_found("internlm3", None, None)
    known = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    text = " ".join([*dashboards.queries(), *ALERTS.values()])
    asked = set(re.findall(r"(?:internlm|process)_\w+", text))
    assert "process_start_time_seconds" in asked
    assert asked - known == set()


def test_every_series_is_the_chosen_ones_and_each_choice_fits_those_before_it() -> None:
    chosen = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
    for query in dashboards.queries():
        assert all(rest.startswith(f"{{{chosen}") for rest in re.split(r"\binternlm_\w+", query)[1:]), query
    choices = {each["name"]: each for each in dashboards.dashboard()["templating"]["list"][1:]}
    assert list(choices) == ["namespace", "job", "instance"]
    assert choices["instance"]["query"]["query"] == (
        'label_values(internlm_ready{namespace=~"$namespace",job=~"$job"}, instance)'
    )


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboards.dashboard()["panels"] if panel["type"] != "row"]


def test_the_dashboard_takes_its_source_from_a_variable_and_has_an_identity_of_its_own() -> None:
    made = dashboards.dashboard()
    assert made["uid"] == "internlm-chat-overview"
    assert made["templating"]["list"][0]["type"] == "datasource"
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_panels_are_numbered_once_and_do_not_overlap() -> None:
    everything = dashboards.dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: Counter[tuple[int, int]] = Counter()
    for panel in everything:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= dashboards.WIDTH
        taken.update(
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        )
    assert max(taken.values()) == 1


def test_counters_are_never_shown_raw() -> None:
    """A counter's own value says when the pod started, not what happens; restarts are counted on purpose."""
    for query in dashboards.queries():
        raw = re.findall(r"(?<!rate\()(internlm_\w+_(?:total|bucket|sum|count))\b", query)
        assert set(raw) <= {"internlm_engine_restarts_total"}, query
