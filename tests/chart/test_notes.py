"""What the operator reads after an install fits what was chosen."""

import re
import shlex

import pytest
import yaml
from fastapi.routing import APIRoute

from service.api import ui
from service.engine.base import EngineState, EngineStatus
from service.metrics import Metrics
from tests.support.docs import served_paths
from tests.support.helm import CHART, Values, notes, render

CASES: dict[str, tuple[Values, list[str], list[str]]] = {
    "one GPU": (
        {},
        [
            "Shanghai_AI_Laboratory/internlm3-8b-instruct is starting on one nvidia.com/gpu.",
            "the first start downloads the model, 17.7G",
            "rollout status deployment/chat-internlm-chat --timeout=3600s",
            "logs -f deployment/chat-internlm-chat -c download",
            "port-forward service/chat-internlm-chat 6006:6006",
            "in a browser: http://127.0.0.1:6006/ui",
            "keeps the model on claim chat-internlm-chat-model",
            "helm -n models test chat",
            "Insufficient nvidia.com/gpu",
        ],
        ["Authorization", "in each of"],
    ),
    "a GPU by a claim": (
        {"gpu": {"claimTemplate": "one-gpu"}},
        [
            "is starting on one GPU by the claim template one-gpu.",
            '"cannot allocate all claims"',
            "ResourceClaimTemplate one-gpu in",
        ],
        ["nvidia.com", "Insufficient"],
    ),
    "the small model on a CPU": (
        {"mode": "cpu", "startupBudget": 120},
        ["A small chat model is starting on the CPU", "--timeout=120s"],
        ["download", "nvidia", "claim"],
    ),
    "an ingress with TLS and keys": (
        {"ingress": {"enabled": True, "host": "a.example", "tlsSecret": "t"}, "apiKeys": {"secretName": "k"}},
        ["URL=https://a.example\n", "in a browser: https://a.example/ui\n", "Authorization: Bearer $API_KEY"],
        ["port-forward"],
    ),
    "an ingress of the default class": (
        {"ingress": {"enabled": True}, "requestTimeout": 600},
        ["ingress class\n<the cluster's default one> must wait for at least 610 s", "are set for ingress-nginx alone."],
        [],
    ),
    "an ingress of ingress-nginx": ({"ingress": {"enabled": True, "className": "nginx"}}, ["URL="], ["must wait for"]),
    "an ingress of another class": (
        {"ingress": {"enabled": True, "className": "traefik"}},
        ["traefik must wait for at least 310 s", "no annotation is set for that.", '"Through a proxy"'],
        ["ingress-nginx"],
    ),
    "a load balancer": (
        {"service": {"type": "LoadBalancer"}},
        ["get service chat-internlm-chat -o jsonpath"],
        ["forward"],
    ),
    "a claim each": (
        {"storage": {"perReplica": True}, "replicas": 2},
        ["rollout status statefulset/chat-internlm-chat", "in each of 2 pods", "keeps the model, so that"],
        [],
    ),
    "a model on a volume": (
        {"model": {"source": "volume", "path": "qwen/small"}, "storage": {"existingClaim": "models"}},
        ["small is starting on one nvidia.com/gpu"],
        ["internlm3", "downloads"],
    ),
    "a route of a gateway": (
        {"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["a.example"]}}},
        ["URL=http://a.example "],
        ["port-forward"],
    ),
    "an inference pool": (
        {"gateway": {"inferencePool": {"enabled": True, "endpointPicker": {"name": "epp"}}}},
        [
            "picker epp must be",
            "passthrough-parser",
            "--model-server-metrics-port=6007",
            "internlm_num_requests_waiting",
        ],
        [],
    ),
    "secrets": ({"model": {"tokenSecret": {"name": "hub"}}}, ["an event names the Secret"], ["Authorization"]),
    "an existing claim": ({"storage": {"existingClaim": "models"}}, ["is starting"], ["keeps the model"]),
}


EXPOSED: dict[str, tuple[Values, bool]] = {
    "inside the cluster": ({}, False),
    "a load balancer": ({"service": {"type": "LoadBalancer"}}, True),
    "a node port": ({"service": {"type": "NodePort"}}, True),
    "an ingress": ({"ingress": {"enabled": True}}, True),
    "a route": ({"gateway": {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}}}, True),
}


@pytest.mark.parametrize(("values", "warned"), EXPOSED.values(), ids=EXPOSED.keys())
def test_a_service_that_strangers_reach_without_a_key_is_warned_of(values: Values, warned: bool) -> None:
    assert ("WARNING: whoever reaches this address may use the GPU" in notes(values)) is warned
    assert "WARNING" not in notes(values | {"apiKeys": {"secretName": "keys"}})


@pytest.mark.parametrize(("values", "said", "unsaid"), CASES.values(), ids=CASES.keys())
def test_the_notes_fit_the_values(values: Values, said: list[str], unsaid: list[str]) -> None:
    text = notes(values)
    assert [each for each in said if each not in text] == []
    assert [each for each in unsaid if each in text] == []


@pytest.mark.parametrize("values", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_the_curl_line_can_be_pasted(values: Values) -> None:
    (line,) = [line for line in notes(values).splitlines() if line.strip().startswith("curl")]
    words = shlex.split(line)
    assert words[:2] == ["curl", "$URL/v1/chat"]
    assert words[-1] == '{"prompt": "你好"}'


@pytest.mark.parametrize("values", [case[0] for case in CASES.values()], ids=CASES.keys())
def test_every_path_the_notes_send_people_to_is_served(values: Values) -> None:
    named = set(re.findall(r"(?:https?://(?:<[^>]+>|[^/\s]+)|\$URL)(/\S+)", notes(values)))
    assert named == {"/v1/chat", "/ui"}
    assert named <= served_paths() | {route.path for route in ui.router().routes if isinstance(route, APIRoute)}


def test_the_pickers_example_names_this_servers_port_and_metrics() -> None:
    readme = (CHART / "README.md").read_text()
    section = readme.partition("\n## Behind an endpoint picker\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"^```yaml\n(.+?)^```", section, re.DOTALL | re.MULTILINE)
    config = yaml.safe_load(example)
    types = {plugin["type"] for plugin in config["plugins"]}
    (parser,) = config["requestHandler"]["parsers"]
    (source,) = config["dataLayer"]["sources"]
    used = [parser, source, *source["extractors"], *config["schedulingProfiles"][0]["plugins"]]
    assert {each["pluginRef"] for each in used} == types
    (engine,) = config["plugins"][-1]["parameters"]["engineConfigs"]
    metrics = Metrics(lambda: EngineStatus(state=EngineState.STARTING), lambda: False)
    known = {family.name for family in metrics.registry.collect()}
    assert {value for key, value in engine.items() if key.endswith("Spec")} <= known
    assert f"--model-server-metrics-port={render().settings['INTERNLM_METRICS_PORT']}" in section
