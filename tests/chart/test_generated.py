"""What the chart says twice agrees: README with values, schema with settings, dashboard with its source."""

import json
import re

import pytest
import yaml

from charts import dashboards, generate
from service.download_settings import DownloadSettings
from service.environment import known_variables
from service.settings import Settings
from tests.support.helm import CHART, Values, refusal, render

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
HUB = {"source": "modelscope", "endpoint": "http://hub", "tokenSecret": {"name": "hub"}, "name": "x"}
HOW = "run `python charts/generate.py`"


def paths(value: object, prefix: str = "") -> list[str]:
    """Dotted paths of every leaf."""
    if not isinstance(value, dict) or not value:
        return [prefix]
    return [path for key, sub in value.items() for path in paths(sub, f"{prefix}.{key}".lstrip("."))]


def schema_paths(schema: Values, prefix: str = "") -> list[str]:
    definitions = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    if not schema.get("properties"):
        return [prefix]
    return [p for key, sub in schema["properties"].items() for p in schema_paths(sub, f"{prefix}.{key}".lstrip("."))]


def test_readme_and_schema_are_as_generated() -> None:
    assert (CHART / "README.md").read_text() == generate.readme_text(), HOW
    assert (CHART / "values.schema.json").read_text() == generate.schema_text(), HOW


def test_the_dashboard_is_as_generated() -> None:
    assert (CHART / "files/dashboards/internlm-chat-overview.json").read_text() == dashboards.text(), (
        "python charts/dashboards.py"
    )


def test_every_value_is_explained() -> None:
    explained = generate.comments()
    free = ("pod.securityContext.", "gpu.tolerations")
    assert [path for path in paths(VALUES) if path not in explained and not path.startswith(free)] == []


def test_every_value_has_its_place_in_the_schema_and_back() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    of_kubernetes = re.compile(r"(?<=resources)\.(requests|limits|claims)$|(?<=extraSpec)\.resourceClaims$")
    closed = {of_kubernetes.sub("", path) for path in schema_paths(schema)}
    known = {path for path in paths(VALUES) if not path.startswith("pod.securityContext.")}
    of_others = ("settings.", "global", "enabled")
    assert known - {"settings"} == {path for path in closed if not path.startswith(of_others)} - {"pod.securityContext"}


def test_everything_that_a_container_is_told_is_a_setting_of_the_service() -> None:
    everything = {
        "model": HUB,
        "apiKeys": {"secretName": "keys"},
        "settings": {name: example(field) for name, field in generate.settings().items()},
    }
    manifests = render(everything)
    assert manifests.settings.keys() <= manifests.download_settings.keys() <= set(known_variables())


def example(field: Values) -> object:
    """A value that the setting's schema takes: its default, or what its type makes of 1."""
    if field.get("default") is not None:
        return field["default"]
    kinds = {kind.get("type"): kind for kind in field.get("anyOf", [field])}
    return 1 if {"integer", "number"} & set(kinds) else "a" * 64


def test_every_setting_of_the_service_is_a_value_or_decided_by_one() -> None:
    declared = set(Settings.model_fields) | set(DownloadSettings.model_fields)
    offered = set(generate.settings())
    assert {generate.camel(name) for name in declared - generate.OWNED} == offered


def test_what_the_service_reads_is_what_the_values_said() -> None:
    rendered = render({"settings": {"maxRunning": 64, "gpuMemoryFraction": 0.85, "logPrompts": True}}).settings
    names = {f"INTERNLM_{name.upper()}": name for name in Settings.model_fields}
    settings = Settings(**{names[key]: value for key, value in rendered.items() if key in names})
    assert (settings.max_running, settings.gpu_memory_fraction, settings.log_prompts) == (64, 0.85, True)
    assert (settings.request_timeout, settings.port, settings.device) == (300, 6006, "cuda")


def through_the_environment(name: str) -> str:
    return refusal({"extraEnv": [{"name": "TZ", "value": "UTC"}, {"name": f"INTERNLM_{name.upper()}", "value": "1"}]})


@pytest.mark.parametrize("name", sorted(generate.OWNED))
def test_what_another_value_decides_is_not_taken_from_the_environment(name: str) -> None:
    said = through_the_environment(name)
    (way_out,) = re.findall(f"extraEnv sets INTERNLM_{name.upper()}, which .+ decides.*: (.+)[.]", said)
    if way_out != "leave it out":
        (value,) = re.findall("^set ([a-zA-Z.]+) instead$", way_out)
        assert value in paths(VALUES)


@pytest.mark.parametrize("name", ["max_running", "log_prompts", "kv_cache_tokens", "host"])
def test_a_setting_through_the_environment_is_shown_its_value(name: str) -> None:
    assert f"which is a setting of the server: set settings.{generate.camel(name)} instead." in through_the_environment(
        name
    )


@pytest.mark.parametrize("name", ["max_running", "log_level", "gpu_memory_fraction"])
def test_names_survive_the_way_to_the_environment(name: str) -> None:
    assert re.sub("(?<!^)(?=[A-Z])", "_", generate.camel(name)).lower() == name
