"""`helm template` as a function: values in, parsed manifests out."""

import json
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.kube_api import running_api
from tests.support.tools import HELM, Binary, path_of

CHART = Path(__file__).parents[2] / "charts" / "internlm-chat"
RELEASE, NAMESPACE = "chat", "models"
NAME = "chat-internlm-chat"
KUBERNETES = "1.34.0"

Manifest = dict[str, Any]
Values = dict[str, Any]


class HelmError(Exception):
    """helm refused; the text is what it said."""


class Manifests(list[Manifest]):
    """Rendered objects, to be found by kind."""

    def all(self, kind: str) -> list[Manifest]:
        return [each for each in self if each["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        found = [each for each in self.all(kind) if name in (None, each["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects of kind {kind} named {name}"
        return found[0]

    @property
    def workload(self) -> Manifest:
        return self.one("StatefulSet") if self.all("StatefulSet") else self.one("Deployment")

    @property
    def pod(self) -> Manifest:
        """The serving pod's spec."""
        return self.workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]

    @property
    def server(self) -> Manifest:
        return self.pod["containers"][0]  # type: ignore[no-any-return]

    @property
    def download(self) -> Manifest:
        return self.pod["initContainers"][0]  # type: ignore[no-any-return]

    @property
    def settings(self) -> dict[str, str]:
        """The server's, as it reads them."""
        return settings_of(self.server)

    @property
    def download_settings(self) -> dict[str, str]:
        """The init container's, with those of the ConfigMap that it is told to read."""
        maps = [each["configMapRef"]["name"] for each in self.download.get("envFrom", [])]
        more = {key: value for name in maps for key, value in self.one("ConfigMap", name)["data"].items()}
        return more | settings_of(self.download)


def settings_of(container: Manifest) -> dict[str, str]:
    """The `INTERNLM_...` variables of a container as Kubernetes hands them over: of two dollars, one."""
    named = {each["name"]: each.get("value", "") for each in container.get("env", [])}
    return {name: value.replace("$$", "$") for name, value in named.items() if name.startswith("INTERNLM_")}


def helm(*arguments: str, stdin: str | None = None, binary: Binary = HELM) -> str:
    """helm's standard output. Raises HelmError with what it complained of."""
    done = subprocess.run(
        [path_of(binary), *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def render(
    values: Values | None = None,
    *,
    files: Sequence[Path] = (),
    kubernetes: str = KUBERNETES,
    chart: Path = CHART,
    binary: Binary = HELM,
) -> Manifests:
    """What `helm install` would send. Raises HelmError for values that schema or templates refuse."""
    arguments = ["template", RELEASE, str(chart), "--namespace", NAMESPACE, "--kube-version", kubernetes]
    for file in files:
        arguments += ["--values", str(file)]
    ask = helm if files or chart != CHART else helm_once
    text = ask(*arguments, "--values", "-", stdin=json.dumps(values or {}), binary=binary)
    return Manifests(each for each in yaml.safe_load_all(text) if each)


@cache
def helm_once(*arguments: str, stdin: str, binary: Binary) -> str:
    """What `helm` says, of a chart that no test changes."""
    return helm(*arguments, stdin=stdin, binary=binary)


def render_upgrade(
    values: Values, deployed: Sequence[Manifest], folder: Path, *, binary: Binary = HELM, namespace: str = NAMESPACE
) -> Manifests:
    """What `helm upgrade` would send where these objects are in the cluster, hooks among it."""
    with running_api(list(deployed), folder) as kubeconfig:
        arguments = ["template", RELEASE, str(CHART), "--namespace", namespace, "--is-upgrade", "--dry-run=server"]
        arguments += ["--disable-openapi-validation", "--kubeconfig", str(kubeconfig), "--values", "-"]
        text = helm(*arguments, stdin=json.dumps(values), binary=binary)
    return Manifests(each for each in yaml.safe_load_all(text) if each)


def refusal(values: Values, *, kubernetes: str = KUBERNETES, chart: Path = CHART) -> str:
    """What helm says to values that cannot work; fails the test if it takes them."""
    try:
        render(values, kubernetes=kubernetes, chart=chart)
    except HelmError as error:
        return str(error)
    raise AssertionError(f"helm took {values}")


def notes(values: Values | None = None) -> str:
    """NOTES.txt as the operator sees it after an install."""
    arguments = ["install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--dry-run=client", "--values", "-"]
    text = helm(*arguments, stdin=json.dumps(values or {}))
    return text.partition("\nNOTES:\n")[2]
