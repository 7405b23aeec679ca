"""The workflows as data."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))

Step = dict[str, Any]


def jobs(workflow: str) -> dict[str, Any]:
    """The jobs of one workflow file, by their ids."""
    return yaml.safe_load((GITHUB / "workflows" / workflow).read_text())["jobs"]  # type: ignore[no-any-return]


def place(steps: list[Step], text: str) -> int:
    """Index of the only step that uses the action, or runs the command, in which `text` occurs."""
    (found,) = [i for i, step in enumerate(steps) if text in step.get("uses", "") + step.get("run", "")]
    return found


def step(steps: list[Step], text: str) -> Step:
    """That step itself."""
    return steps[place(steps, text)]
