"""Write the chart's Grafana dashboards; a test fails where the committed JSON differs from what this makes.

Use: python charts/dashboards.py. Each panel is one line of `ROWS`: title, unit, queries, in which `$series` stands for
the dashboard's choice of namespace, job and instances, `$range` for the interval that fits the resolution.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "internlm-chat" / "files" / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# In the order in which they are chosen: each offers what fits the ones before it.
CHOICES = ("namespace", "job", "instance")
SELECTOR = ",".join(f'{name}=~"${name}"' for name in CHOICES)
WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL, legend) pairs."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    width: int = 8
    description: str = ""
    mappings: tuple[dict[str, Any], ...] = field(default=())

    @property
    def height(self) -> int:
        return 4 if self.kind == "stat" else 8


def quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """Median, 95th and 99th percentile of a histogram."""
    bucket = f"sum by (le) (rate({histogram}_bucket{{$series}}[$range]))"
    return tuple((f"histogram_quantile({q}, {bucket})", f"p{q * 100:g}") for q in (0.5, 0.95, 0.99))


def ratio(part: str, whole: str) -> str:
    return f"sum(rate({part}[$range])) / sum(rate({whole}[$range]))"


ROUTES = 'route=~"/v1/(chat|chat/completions|completions|responses)"'
CHATS = f"internlm_http_requests_total{{$series,{ROUTES}}}"
TURNED_AWAY = f'internlm_http_requests_total{{$series,{ROUTES},status="429"}}'
NOTHING = ({"type": "special", "options": {"match": "null+nan", "result": {"text": "no traffic"}}},)

ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Ready pods", "none", (("sum(internlm_ready{$series})", ""),), "stat", 4),
        Panel("Running", "none", (("sum(internlm_num_requests_running{$series})", ""),), "stat", 4),
        Panel("Waiting", "none", (("sum(internlm_num_requests_waiting{$series})", ""),), "stat", 4),
        Panel(
            "Tokens per second",
            "none",
            (("sum(rate(internlm_generation_tokens_total{$series}[$range]))", ""),),
            "stat",
            4,
        ),
        Panel("Engine restarts", "none", (("sum(internlm_engine_restarts_total{$series})", ""),), "stat", 4),
        Panel("Version", "none", (("count by (version) (internlm_build_info{$series})", "{{version}}"),), "stat", 4),
    ),
    "Traffic": (
        Panel(
            "Requests by outcome",
            "reqps",
            (("sum by (outcome) (rate(internlm_requests_total{$series}[$range]))", "{{outcome}}"),),
        ),
        Panel(
            "HTTP answers by status",
            "reqps",
            (("sum by (status) (rate(internlm_http_requests_total{$series}[$range]))", "{{status}}"),),
        ),
        Panel(
            "Tokens in and out",
            "none",
            (
                ("sum(rate(internlm_prompt_tokens_total{$series}[$range]))", "prompt"),
                ("sum(rate(internlm_generation_tokens_total{$series}[$range]))", "generated"),
            ),
        ),
        Panel(
            "Rejected share",
            "percentunit",
            (
                (
                    # Nobody turned away yet: there is no such series, and the share is nothing.
                    f"{ratio(TURNED_AWAY, CHATS)} or 0 * sum(rate({CHATS}[$range]))",
                    "429",
                ),
            ),
            mappings=NOTHING,
        ),
        Panel(
            "Queue",
            "none",
            (
                ("sum(internlm_num_requests_running{$series})", "running"),
                ("sum(internlm_num_requests_waiting{$series})", "waiting"),
            ),
        ),
        Panel(
            "Mean length",
            "none",
            tuple(
                (
                    ratio(
                        f"internlm_request_{side}_tokens_sum{{$series}}",
                        f"internlm_request_{side}_tokens_count{{$series}}",
                    ),
                    side,
                )
                for side in ("prompt", "generation")
            ),
            mappings=NOTHING,
        ),
    ),
    "Latency": (
        Panel("Time to first token (TTFT)", "s", quantiles("internlm_time_to_first_token_seconds")),
        Panel("Time per output token (TPOT)", "s", quantiles("internlm_time_per_output_token_seconds")),
        Panel("Whole answer", "s", quantiles("internlm_request_duration_seconds")),
        Panel("Wait in the queue", "s", quantiles("internlm_request_queue_time_seconds")),
    ),
    "Engine": (
        Panel(
            "KV cache",
            "percentunit",
            (
                (
                    'sum(internlm_kv_blocks_in_use{$series,use="running"}) / sum(internlm_kv_blocks{$series})',
                    "running requests",
                ),
                (
                    'sum(internlm_kv_blocks_in_use{$series,use="prefix_cache"}) / sum(internlm_kv_blocks{$series})',
                    "reusable prefixes",
                ),
            ),
        ),
        Panel(
            "Prompt tokens found in the prefix cache",
            "percentunit",
            (
                (
                    ratio("internlm_cached_prompt_tokens_total{$series}", "internlm_prompt_tokens_total{$series}"),
                    "share",
                ),
            ),
            mappings=NOTHING,
        ),
        Panel(
            "Steps",
            "ops",
            (("sum by (instance) (rate(internlm_engine_steps_total{$series}[$range]))", "{{instance}}"),),
        ),
        Panel(
            "State",
            "none",
            (("sum by (state) (internlm_engine_state{$series}) > 0", "{{state}}"),),
        ),
        Panel(
            "Slower than it could be",
            "none",
            (("sum by (path) (internlm_engine_degraded{$series})", "{{path}}"),),
            description="Fast paths that were replaced by slower ones. Empty is good.",
        ),
        Panel(
            "Pods by model",
            "none",
            (("count by (model, revision) (internlm_model_info{$series})", "{{model}} {{revision}}"),),
            description="More than one line for longer than an upgrade: answers depend on the pod.",
        ),
    ),
    "GPU memory and start": (
        Panel(
            "GPU memory",
            "bytes",
            (
                ("sum by (scope) (internlm_gpu_memory_used_bytes{$series})", "{{scope}}"),
                ("sum(internlm_gpu_memory_total_bytes{$series})", "total"),
            ),
            width=12,
            description="Measured inside the service; empty where there is no GPU.",
        ),
        Panel(
            "Seconds of the last start, by phase",
            "s",
            (("max by (phase) (internlm_startup_seconds{$series})", "{{phase}}"),),
            width=12,
        ),
    ),
}


def queries() -> list[str]:
    """Every PromQL expression, as Grafana sends it but for its variables."""
    return [expression(query) for panels in ROWS.values() for panel in panels for query, _ in panel.queries]


def expression(query: str) -> str:
    return query.replace("$series", SELECTOR).replace("$range", "$__rate_interval")


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": expression(query), "legendFormat": legend}
        for n, (query, legend) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "mappings": list(panel.mappings)}
    made = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": targets,
    }
    if panel.title == "Version":
        made["options"] = {"textMode": "name"}
    return made


def panels_json() -> list[dict[str, Any]]:
    """Rows and panels, laid out from left to right."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in ROWS.items():
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        )
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + panel.height
            made.append(panel_json(panel, len(made) + 1, x, y))
            x += panel.width
        y += panels[-1].height
    return made


def variable(name: str) -> dict[str, Any]:
    before = ",".join(f'{each}=~"${each}"' for each in CHOICES[: CHOICES.index(name)])
    query = f"label_values(internlm_ready{{{before}}}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",  # series without that label, too
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "internlm-chat-overview",
        "title": "InternLM chat",
        "tags": ["internlm-chat", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                *(variable(name) for name in CHOICES),
            ]
        },
        "panels": panels_json(),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "internlm-chat-overview.json").write_text(text())


if __name__ == "__main__":
    main()
