"""What documents say of the code. `python -m tests.support.docs` writes the README's tables; a test compares."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from pydantic_settings import BaseSettings

from service.api.app import create_app
from service.api.health import Identity
from service.delivery.reporting.metrics import TransferMetrics
from service.download_settings import DownloadSettings
from service.engine.base import EngineState, EngineStats, EngineStatus
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.unit.test_metrics import GPU, INFO

README = Path(__file__).parents[2] / "README.md"


def settings_table(*classes: type[BaseSettings]) -> str:
    """One row per setting: variable, default, description."""
    fields = {name: field for each in reversed(classes) for name, field in each.model_fields.items()}
    names = dict.fromkeys(name for each in classes for name in each.model_fields)
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(fields[name].default)} | {fields[name].description} |"
        for name in names
    ]
    return "\n".join(["| Variable | Default | |", "| --- | --- | --- |", *rows])


def metrics_table() -> str:
    """The server's series. Taken from a scrape of a GPU engine, so that each is really exposed."""
    status = EngineStatus(state=EngineState.READY, info=INFO, stats=EngineStats(gpus=[GPU]))
    return _series(Metrics(lambda: status, lambda: True).registry)


def download_metrics_table() -> str:
    """The download's series."""
    return _series(TransferMetrics(Path("unwritten")).registry)


def _series(registry: CollectorRegistry) -> str:
    """One row per series: name, type, help."""
    rows = [f"| `{_exposed(f.name, f.type)}` | {f.type} | {f.documentation} |" for f in registry.collect()]
    return "\n".join(["| Series | Type | |", "| --- | --- | --- |", *sorted(rows)])


def served_paths() -> set[str]:
    """The API's routes, as its OpenAPI document names them."""
    status = EngineStatus(state=EngineState.STARTING)
    metrics = Metrics(lambda: status, lambda: False)
    app = create_app(Settings(), Lifecycle(), metrics, lambda: status, lambda: None, Identity())  # type: ignore[arg-type, return-value]
    return set(app.openapi()["paths"])


def rendered(text: str) -> str:
    """The README with its generated parts as they should be."""
    text = _replace(text, "settings", settings_table(Settings, DownloadSettings))
    text = _replace(text, "metrics", metrics_table())
    return _replace(text, "download metrics", download_metrics_table())


def _default(value: object) -> str:
    if value is None or value == "":
        return "unset"
    return f"`{value}`"


def _exposed(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def _replace(text: str, part: str, content: str) -> str:
    pattern = rf"<!-- {part} -->\n.*?<!-- /{part} -->"
    block = f"<!-- {part} -->\n{content}\n<!-- /{part} -->"
    return re.sub(pattern, lambda _: block, text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
