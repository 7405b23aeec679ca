"""`null`, which helm takes for "no such key": refused by name where something is needed, as good as empty elsewhere."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.helm import CHART, HelmError, Manifests, Values, render
from tests.support.tools import HELM3

EVERYTHING: Values = {
    "ingress": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "gateway": {
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}]},
        "inferencePool": {"enabled": True, "endpointPicker": {"name": "chat-epp"}},
    },
    "monitoring": {"scrape": "serviceMonitor", "rules": True, "dashboards": {"enabled": True}},
    "pdb": {"enabled": True},
    "replicas": 2,
    "storage": {"accessMode": "ReadWriteMany"},
}
"""Every object of the chart, so that every template meets the null."""
ASKED_FOR = {
    "gateway.httpRoute.parentRefs",
    "gateway.inferencePool.endpointPicker.name",
}
"""Empty by default, and needed by what is switched on here."""
FREE = ("pod.securityContext", "gpu.tolerations", "replicas")
"""Null takes them away: Kubernetes' own fields, which is how OpenShift is given its choice of user, and what is left to
an autoscaler."""


def paths(values: Values, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


DEFAULTS: Values = yaml.safe_load((CHART / "values.yaml").read_text())
PATHS = [".".join(path) for path in paths(DEFAULTS)]


def default_of(path: str) -> Any:
    value: Any = DEFAULTS
    for key in path.split("."):
        value = value[key]
    return value


def is_empty(path: str) -> bool:
    return default_of(path) in ("", None, {}, [])


def with_null(path: str) -> Values:
    *above, last = path.split(".")
    values: Values = yaml.safe_load(yaml.safe_dump(EVERYTHING))
    place = values
    for key in above:
        place = place.setdefault(key, {})
    place[last] = None
    return values


@pytest.fixture(scope="module")
def plain() -> Manifests:
    return render(EVERYTHING)


@pytest.mark.parametrize("path", [path for path in PATHS if is_empty(path) and path not in ASKED_FOR])
def test_where_the_default_is_empty_a_null_is_as_good(path: str, plain: Manifests) -> None:
    assert render(with_null(path)) == plain


@pytest.mark.parametrize("path", [path for path in PATHS if not is_empty(path) and not path.startswith(FREE)])
def test_where_something_is_needed_a_null_is_refused_by_name(path: str) -> None:
    with pytest.raises(HelmError) as error:
        render(with_null(path))
    assert "values don't meet the specifications of the schema" in str(error.value)
    assert f"'{path.rpartition('.')[2]}'" in str(error.value)


@pytest.mark.parametrize("path", sorted(ASKED_FOR))
def test_what_is_needed_by_what_is_on_is_asked_for(path: str) -> None:
    with pytest.raises(HelmError, match=path.rpartition(".")[2]) as error:
        render(with_null(path))
    assert "nil pointer" not in str(error.value)


@pytest.mark.parametrize("path", ["mode", "gpu", "storage.size", "model.tokenSecret"])
def test_helm_3_refuses_it_as_well(path: str) -> None:
    with pytest.raises(HelmError, match=path.rpartition(".")[2]) as error:
        render(with_null(path), binary=HELM3)
    assert "schema" in str(error.value)


@pytest.mark.parametrize("path", ["gpu", "gpu.resource"])
def test_a_cpu_needs_nothing_of_a_gpu(path: str) -> None:
    cpu = {"mode": "cpu"}
    assert render(with_null(path) | cpu) == render(EVERYTHING | cpu)


def test_replicas_can_be_left_to_an_autoscaler() -> None:
    assert "replicas" not in render(with_null("replicas") | {"pdb": {"enabled": False}}).workload["spec"]


def test_a_user_can_be_left_to_the_cluster(plain: Manifests) -> None:
    context = render(with_null("pod.securityContext.runAsUser")).pod["securityContext"]
    assert context == {key: value for key, value in plain.pod["securityContext"].items() if key != "runAsUser"}
