"""Debian's promtool and prometheus as functions."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.helm import Manifest

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt-get install prometheus)"
)


def write_rules(rule: Manifest, folder: Path) -> Path:
    """The rules of a PrometheusRule as Prometheus itself loads them."""
    file = folder / "rules.yml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    return file


def promtool(*arguments: str) -> None:
    """Run promtool; fails the test with all it says."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rule_test(rules: Path, tests: list[dict[str, Any]]) -> None:
    """`promtool test rules` over `tests`, in its own format."""
    file = rules.with_name("tests.yml")
    content = {"rule_files": [rules.name], "evaluation_interval": "15s", "tests": tests}
    file.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(file))
