"""Write what the chart says twice: its README (from the comments of values.yaml) and the schema of `settings`.

Use: python charts/generate.py. The settings come from the service's own declarations; a test fails where the
committed files differ from what this makes of them.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from service import __version__
from service.download_settings import DownloadSettings
from service.settings import Settings

CHART = Path(__file__).parent / "internlm-chat"
OWNED = {
    # Settings that other values decide, so that one decision is not taken twice.
    "port",
    "metrics_port",
    "model_id",
    "model_dir",
    "cache_dir",
    "run_dir",
    "device",
    "request_timeout",
    "drain_delay",
    "source",
    "model_repo",
    "revision",
    "hub_endpoint",
    "hub_token_file",
    "download_budget",
    "download_make_room",
    "download_keep",
    "api_keys_file",
    "termination_log",
}
LEFT_TO_OTHERS = {
    "replicas",  # an autoscaler of the cluster's own
    "gpu",  # a CPU has none; the schema asks for it in the other mode
    "gpu.resource",
}
"""Values with a default of which none is a choice of its own."""
# `helm --set` can say 3 but not 0.5, which it takes for a string.
DECIMAL = {"type": "string", "pattern": "^[0-9]*[.][0-9]+$"}
SHARE = {"type": "string", "pattern": "^(0?[.][0-9]*[1-9][0-9]*|1[.]0+)$"}
"""The same of what is 1 at most."""
KEPT = ("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern", "anyOf")
COMMENT = re.compile(r"^(\s*)# -- (.*)$")
KEY = re.compile(r"^(\s*)([A-Za-z]\w*):")


def camel(name: str) -> str:
    """`max_running` as values spell it: `maxRunning`."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def settings() -> dict[str, dict[str, Any]]:
    """JSON schema of every setting that no other value decides, by its name in the values."""
    fields: dict[str, dict[str, Any]] = {}
    for kind in (Settings, DownloadSettings):
        fields |= kind.model_json_schema()["properties"]
    return {camel(name): field for name, field in fields.items() if name not in OWNED}


def settings_schema() -> dict[str, object]:
    """JSON schema of the value `settings`."""
    properties = {name: setting_schema(field) for name, field in settings().items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def setting_schema(field: dict[str, Any]) -> dict[str, object]:
    kept = {key: field[key] for key in KEPT if key in field}
    if kept.get("type") == "number":
        kept = {"anyOf": [kept, SHARE if kept.get("maximum") == 1 else DECIMAL]}
    return kept | {"description": field["description"]}


def schema_text() -> str:
    """values.schema.json with its generated part renewed."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    schema["properties"]["settings"] = settings_schema()
    require(schema, yaml.safe_load((CHART / "values.yaml").read_text()), schema["definitions"])
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def require(schema: dict[str, Any], defaults: dict[str, Any], definitions: dict[str, Any], above: str = "") -> None:
    """Ask for every value that cannot be done without, where none is not as good as the default.

    helm takes `null` for "no such key", which a template would meet as a nil pointer, or as another mode.
    """
    needed = []
    for key, default in defaults.items():
        path = f"{above}{key}"
        child = schema["properties"][key]
        child = definitions[child["$ref"].rpartition("/")[2]] if "$ref" in child else child
        is_section = isinstance(default, dict) and child.get("additionalProperties") is False and default
        if is_section:
            require(child, default, definitions, f"{path}.")
        has_value = is_section or isinstance(default, (bool, int)) or (isinstance(default, str) and default)
        if has_value and path not in LEFT_TO_OTHERS:
            needed.append(key)
    schema["required"] = needed


def comments() -> dict[str, str]:
    """The `# --` comment of each key of values.yaml, by dotted path."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    comment = ""
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := COMMENT.match(line):
            comment = match[2]
        elif match := KEY.match(line):
            indent = len(match[1])
            path = [(i, key) for i, key in path if i < indent] + [(indent, match[2])]
            if comment:
                found[".".join(key for _, key in path)] = comment
            comment = ""
    return found


def value_at(path: str) -> object:
    value = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in path.split("."):
        value = value[key]
    return value


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def values_table() -> str:
    rows = [row(f"`{path}`", f"`{json.dumps(value_at(path))}`", text) for path, text in comments().items()]
    return "\n".join([row("Value", "Default", "Meaning"), row("---", "---", "---"), *rows])


def settings_table() -> str:
    rows = [
        row(f"`settings.{name}`", f"`{json.dumps(field.get('default'))}`", field["description"])
        for name, field in settings().items()
    ]
    return "\n".join([row("Setting", "Default", "Meaning"), row("---", "---", "---"), *rows])


def readme_text() -> str:
    """README.md: the template with its version and its two tables filled in."""
    text = (CHART / "README.md.tpl").read_text()
    for name, made in {"version": __version__, "values": values_table(), "settings": settings_table()}.items():
        text = text.replace(f"{{{{ {name} }}}}", made)
    return text


def main() -> None:
    (CHART / "values.schema.json").write_text(schema_text())
    (CHART / "README.md").write_text(readme_text())


if __name__ == "__main__":
    main()
