"""The README tells what is there: its tables are the code's, its commands are what CI runs."""

import re
import subprocess
import sys

from service.api.schema import ChatRequest
from tests.support.docs import README, rendered, served_paths

TEXT = README.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_tables_are_the_codes() -> None:
    assert rendered(TEXT) == TEXT, "run: python -m tests.support.docs"


def test_the_first_two_commands_are_one_line_each_and_serve_and_test() -> None:
    serve, check = blocks("sh")
    assert serve.count("\n") == check.count("\n") == 1
    assert serve.rstrip().endswith("internlm-chat serve")
    assert check.rstrip().endswith("pytest -n auto")


def test_ci_runs_the_readmes_test_command() -> None:
    script = (README.parent / ".ci" / "run").read_text().replace("bash -euo pipefail -c", ": would run")
    done = subprocess.run(["bash", "-c", script, str(README.parent / ".ci" / "run")], capture_output=True, text=True)
    assert f"+ E2E=1 {blocks('sh')[1].rstrip()}" in done.stdout, done.stderr


def test_every_route_is_named() -> None:
    assert {path for path in served_paths() if f"{path}`" not in TEXT} == set()


def test_every_field_of_a_chat_is_named() -> None:
    assert {name for name in ChatRequest.model_fields if f"`{name}`" not in TEXT} == set()


def test_every_file_the_readme_points_to_exists() -> None:
    named = set(re.findall(r"`((?:api|chat|engine)/\w+\.py|metrics\.py)`", TEXT))
    assert named
    assert {name for name in named if not (README.parent / "service" / name).exists()} == set()


def test_every_subcommand_has_help() -> None:
    for command in ("serve", "download", "check", "chat"):
        done = subprocess.run([sys.executable, "-m", "service", command, "--help"], capture_output=True, text=True)
        assert done.returncode == 0
        assert "usage: internlm-chat" in done.stdout
