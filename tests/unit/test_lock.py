"""The lock holds every dependency, at a version the project allows and the tests ran with."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LINES = [line for group in [PROJECT["dependencies"], *EXTRAS.values()] for line in group]
DIRECT = [requirement for requirement in map(Requirement, LINES) if requirement.name != PROJECT["name"]]
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKED = {normal(name): Version(number) for name, number in LOCK.items()}
INSTALLERS = {"pip"}
"""The installer is whatever the machine has, as long as it is new enough."""


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_dependency_is_locked_at_a_version_it_allows(requirement: Requirement) -> None:
    if requirement.name not in INSTALLERS:
        assert LOCKED[normal(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("name", sorted(LOCKED))
def test_these_tests_ran_with_the_locked_version(name: str) -> None:
    try:
        installed = Version(version(name))
    except PackageNotFoundError:
        pytest.skip(f"{name} is locked for an extra that is not installed here")
    assert installed.public == str(LOCKED[name])


def test_the_init_container_needs_no_torch() -> None:
    names = {normal(Requirement(line).name) for line in PROJECT["dependencies"] + EXTRAS["hub"] + EXTRAS["download"]}
    assert not names & {"torch", "transformers", "fastapi", "tokenizers", "sentencepiece"}


def test_the_lock_names_no_registry() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text()
