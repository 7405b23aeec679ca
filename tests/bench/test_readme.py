"""The benchmark's README: its commands are ones, fit their time limit by its own estimates, and bring every package."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.bench.gpu import parse
from tests.bench.sections import SECTIONS, with_needs
from tests.bench.targets import TARGETS

README = (Path(__file__).parent / "README.md").read_text("utf-8")
LIMIT = 10
"""Minutes of a command."""
WRITES_MODEL = 1
TESTS = {"verify_kernels", "verify_engine"}


def estimates() -> dict[frozenset[str], int]:
    """Minutes of the sections of each row."""
    rows = re.findall(r"^\| (`.*?`) \| .* \| (\d+) min \|$", README, re.MULTILINE)
    return {frozenset(re.findall(r"`(\w+)`", names)): int(minutes) for names, minutes in rows}


def commands() -> list[list[str]]:
    """The sections of each command that is given."""
    return [line.split(",") for line in re.findall(r"^\$gpu --only (\S+)$", README, re.MULTILINE)]


def test_every_section_has_an_estimate_in_the_order_in_which_they_run() -> None:
    assert {name for row in estimates() for name in row} == SECTIONS.keys()
    first = [min(list(SECTIONS).index(name) for name in row) for row in estimates()]
    assert first == sorted(first)


def test_the_commands_run_everything_and_each_fits_its_limit() -> None:
    ran: set[str] = set()
    for sections in commands():
        wanted = set(with_needs(sections))
        parse(["--tiny", "--only", ",".join(sections)])
        minutes = sum(estimate for row, estimate in estimates().items() if row & wanted)
        assert minutes + (0 if wanted <= TESTS else WRITES_MODEL) < LIMIT, sections
        ran |= wanted
    assert ran == SECTIONS.keys()


def test_all_targets_but_the_slowest_are_judged_by_the_first_command() -> None:
    """Each ratio is named after the section that finds it, or after who is measured against."""
    assert {*SECTIONS} - {*with_needs(commands()[0])} == TESTS | {"continuous_batching", "int8", "structured"}
    unjudged = [target for target in TARGETS if "int8" in target.ratio or "json" in target.ratio]
    assert not unjudged, "they are compared, not judged"
    assert sum("continuous_batching" in target.ratio for target in TARGETS) == 1


@pytest.mark.parametrize("extra", ["dependencies", "serve"])
def test_what_a_host_needs_is_there_or_brought(extra: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project[extra] if extra in project else project["optional-dependencies"][extra]
    # What uvicorn-worker and pydantic-settings need comes with them.
    names = {re.split(r"[=><]", package)[0] for package in needed} - {"uvicorn", "pydantic"}
    section = README.split("## On a GPU host without a network")[1].split("\n## ")[0]
    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", section)]


@pytest.mark.slow
def test_the_tests_that_need_a_gpu_import_nothing_that_a_host_may_lack(tmp_path: Path) -> None:
    """One that does has none of its folder run: pytest stops where it cannot collect."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    named = {re.split(r"[=><]", package)[0] for package in project["optional-dependencies"]["dev"]}
    section = README.split("## On a GPU host without a network")[1].split("\n## ")[0]
    lacking = {name.replace("-", "_") for name in named if not re.search(rf"\b{re.escape(name)}\b", section)}
    assert {"jsonschema", "openai"} <= lacking
    hidden = f"import sys\nfor name in {sorted(lacking)}: sys.modules[name] = None\n"
    (tmp_path / "without.py").write_text(hidden)
    command = [sys.executable, "-m", "pytest", "-p", "without", "--collect-only", "-q", "-m", "gpu"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    found = subprocess.run(
        [*command, "tests/gpu", "tests/engine/kernels"], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:]
    assert "tests/gpu/test_grammars.py::" in found.stdout


def test_the_transformers_that_is_brought_is_the_one_that_is_installed_elsewhere() -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    (pinned,) = re.findall(r'"(transformers==\S+)"', pyproject)
    assert pinned in README
