"""The import rule: a module imports only lower rows, the web side never torch, the engine never FastAPI."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROWS: list[set[str]] = [
    {"errors", "settings", "engine.defaults", "download_settings", "environment", "key_file", "log"},
    {"engine.base", "engine.config", "lifecycle", "metrics"},
    {"delivery", "tokenizer"},
    # What steps and talks, without torch.
    {"engine", "engine.checkpoint.read_ahead", "engine.startup.phases", "engine.startup.predecessor"},
    # What computes: torch is imported here alone.
    {"engine.checkpoint", "engine.cuda", "engine.kernels", "engine.startup", "engine.weights", "engine.worker"}
    | {
        "engine.attention",
        "engine.device",
        "engine.device_errors",
        "engine.generate",
        "engine.logit_bias",
        "engine.logprobs",
    }
    | {"engine.model", "engine.quantization", "engine.reference", "engine.runner", "engine.sampling"}
    | {"engine.steps.pending", "engine.steps.slots"},
    {"chat"},
    {"api"},
    {"cli", "daemon_thread", "http_protocol", "metrics_port", "open_files", "readiness", "server", "terminal"}
    | {"gunicorn_conf", "gunicorn_worker", "__main__"},
]

TORCH_ROW = next(index for index, entries in enumerate(ROWS) if "engine.worker" in entries)
TORCH = ("torch", "triton", "transformers")

TORCH_FREE_ENTRY_POINTS = ["service.server", "service.cli", "service.terminal", "service.engine.client"]
ENGINE_BANS = ("fastapi", "starlette", "uvicorn", "service.api", "service.chat")


def modules() -> dict[str, Path]:
    files = [path for path in (ROOT / "service").rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT / "service").with_suffix("").parts): path for path in files}


def row(module: str) -> int:
    """The row whose entry names the module most closely."""
    matches = [
        (len(entry), index)
        for index, entries in enumerate(ROWS)
        for entry in entries
        if module == entry or module.startswith(f"{entry}.")
    ]
    assert matches, f"service.{module} is in no row of the import rule"
    return max(matches)[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_torch(module: str) -> bool:
    return any(name.split(".")[0] in TORCH for name in imports(modules()[module]))


def own(names: set[str]) -> set[str]:
    inside = {name.removeprefix("service.") for name in names if name.startswith("service.")}
    return {name for name in inside if name in modules()}


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_lower_rows(module: str) -> None:
    higher = [name for name in own(imports(modules()[module])) if row(name) > row(module)]
    assert higher == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: own(imports(path)) - {module} for module, path in modules().items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


@pytest.mark.parametrize("package", ["delivery", "engine"])
def test_no_folder_imports_itself_through_its_neighbours(package: str) -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for module, path in modules().items():
        if folder := folder_in(package, module):
            graph[folder] |= {folder_in(package, name) for name in own(imports(path))} - {"", folder}
    tuple(TopologicalSorter(graph).static_order())


def folder_in(package: str, module: str) -> str:
    """The folder of `package` that the module lies in; "" for one that lies elsewhere, or in none."""
    folders = module.split(".")[:-1]
    return folders[1] if len(folders) > 1 and folders[0] == package else ""


@pytest.mark.parametrize("module", sorted(name for name in modules() if name.startswith("engine.")))
def test_the_engine_knows_nothing_of_the_web(module: str) -> None:
    assert not [name for name in imports(modules()[module]) if name.startswith(ENGINE_BANS)]


@pytest.mark.parametrize("module", sorted(name for name in modules() if row(name) != TORCH_ROW))
def test_torch_is_imported_only_by_the_engine(module: str) -> None:
    assert not imports_torch(module)


@pytest.mark.parametrize("entry", TORCH_FREE_ENTRY_POINTS)
def test_the_web_process_never_loads_torch(entry: str) -> None:
    code = f"import sys, {entry}; assert not {{'torch', 'transformers'}} & set(sys.modules), 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_engine_process_begins_with_one_thread() -> None:
    """numpy would bring more before the process heeds a SIGTERM: one of those would take it, and end the process."""
    code = "import sys, service.engine.worker; assert 'numpy' not in sys.modules, 'numpy was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_engine_starts_without_torchs_compiler() -> None:
    """It takes as long to import as all else together, at every start, and compiles nothing here."""
    code = "import sys, service.engine.startup.build; assert 'torch._dynamo' not in sys.modules, 'it was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_only_metrics_declare_series() -> None:
    kinds = re.compile(r"\b(?:Counter|Gauge|Histogram|Summary|Info|\w+MetricFamily)\(")
    texts = {name: path.read_text() for name, path in modules().items()}
    declaring = {name for name, text in texts.items() if "prometheus_client" in text and kinds.search(text)}
    assert declaring == {"metrics", "delivery.reporting.metrics"}


def test_only_sse_writes_data_lines() -> None:
    writers = [name for name, path in modules().items() if '"data: ' in path.read_text()]
    assert writers == ["api.sse"]


def test_no_module_prints() -> None:
    calls = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []
