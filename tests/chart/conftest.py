"""What several tests of the chart hold its objects against."""

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.support.helm import Manifest
from tests.support.tools import python_with

CHECK = """
import json, sys, kubernetes_validate as validate
for version, manifest in json.load(sys.stdin):
    try:
        validate.validate(manifest, version, strict=True)
    except (validate.ValidationError, validate.SchemaNotFoundError) as error:
        print(f"{version} {manifest['kind']}/{manifest['metadata']['name']}: {error.message}")
"""

Complaints = Callable[[list[tuple[str, Manifest]]], str]


@pytest.fixture(scope="session")
def complaints() -> Complaints:
    """What Kubernetes, of a version each, says against objects: a line for each that it would not take."""
    validator = python_with("kubernetes-validate==1.37.0")  # 100 MB of schemas

    def check(work: list[tuple[str, Manifest]]) -> str:
        command = [validator, "-c", CHECK]
        return subprocess.run(command, input=json.dumps(work), capture_output=True, text=True, check=True).stdout

    return check
