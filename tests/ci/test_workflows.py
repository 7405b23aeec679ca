"""The workflows: least permissions, pinned actions, limits in time, clean under actionlint and zizmor."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from service import __version__
from tests.ci.workflows import GITHUB, ROOT, WORKFLOWS, jobs

CHART = ROOT / "charts" / "internlm-chat"
PINNED = re.compile(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def tool(name: str, *arguments: str | Path) -> str:
    """Output of a linter that pip has installed beside this Python; skips where it is not installed."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_zizmor_finds_nothing() -> None:
    tool("zizmor", "--offline", "--quiet", "--config", GITHUB / "zizmor.yml", GITHUB)


def test_actionlint_finds_nothing() -> None:
    tool("actionlint", *WORKFLOWS)


def test_hadolint_finds_nothing() -> None:
    tool("hadolint", ROOT / "docker" / "Dockerfile")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_every_action_is_pinned_to_a_commit_with_its_version_beside_it(workflow: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in workflow.read_text().splitlines()]
    assert [line for line in lines if line.startswith("uses:") and not PINNED.match(line)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.name)
def test_every_job_says_what_it_may_and_how_long(workflow: Path) -> None:
    assert yaml.safe_load(workflow.read_text())["permissions"] == {}
    for name, job in jobs(workflow.name).items():
        assert job["timeout-minutes"] <= 90, name
        assert job["permissions"]["contents"] == "read", name


def test_only_a_release_may_write() -> None:
    for workflow in WORKFLOWS:
        writes = [name for name, job in jobs(workflow.name).items() if "write" in job["permissions"].values()]
        assert bool(writes) == (workflow.name == "release.yml"), writes


def test_one_version_everywhere() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_dependabot_looks_after_everything_that_is_pinned() -> None:
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"github-actions", "docker", "pip"}
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates)
