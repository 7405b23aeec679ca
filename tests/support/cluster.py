"""A Kubernetes cluster to install the chart into: the one that ../shared/cluster starts, or the one of KUBECONFIG.

E2E=1 python -m pytest tests/e2e starts a cluster, builds the images and loads them. With KUBECONFIG set, the images
are those of IMAGE_REGISTRY with IMAGE_TAG (and NEWER_IMAGE_TAG, another tag of the same): load them into kind first.
MANY_WRITERS_CLASS names a StorageClass of ReadWriteMany volumes, if there is one.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

from tests.support.helm import CHART, Manifest, Values
from tests.support.tools import HELM, KUBECTL, path_of

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "cluster"
NAMESPACE = "internlm-chat-e2e"
PATIENCE = 600
OLDEST_MINOR = 25
EVICTION_MINOR = 22
"""From this one on, kubectl evicts by the API that today's clusters serve."""


class CommandFailed(Exception):
    """A command's exit status was not 0; the text is all it said."""


def run(
    *command: str | Path, stdin: str | None = None, env: dict[str, str] | None = None, timeout: int = PATIENCE
) -> str:
    """Standard output of a command. Raises CommandFailed."""
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, env=env and os.environ | env, check=False
    )
    if done.returncode:
        raise CommandFailed(f"{command[0]} {command[1:]}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


@dataclass
class Cluster:
    """A cluster, the namespace the suite lives in, and where its images are found."""

    kubeconfig: str
    registry: str
    tag: str
    pull_policy: str
    many_writers: str | None
    """StorageClass of volumes that many pods can write; None: there is none."""
    chart: Path = CHART
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {"KUBECONFIG": self.kubeconfig}

    @cached_property
    def minor(self) -> int:
        """The y of Kubernetes 1.y."""
        version = json.loads(self.kubectl("version", "-o", "json"))["serverVersion"]
        return int(version["minor"].rstrip("+"))

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: int = PATIENCE) -> str:
        return run(path_of(KUBECTL), "-n", NAMESPACE, *arguments, stdin=stdin, env=self.environment, timeout=timeout)

    def get(self, *arguments: str) -> Manifest:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))  # type: ignore[no-any-return]

    def apply(self, *manifests: Manifest) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))

    def helm(self, *arguments: str, values: Values | None = None) -> str:
        extra = ["--values", "-"] if values is not None else []
        stdin = json.dumps(values) if values is not None else None
        return run(path_of(HELM), "-n", NAMESPACE, *arguments, *extra, stdin=stdin, env=self.environment)

    def drain(self, node: str, pod: str, selector: str) -> None:
        """`kubectl drain` of a node whose only pod to evict is `pod`. An older cluster is asked by hand, with the
        version of the eviction API it has, for what kubectl does: cordon and evict."""
        if self.minor >= EVICTION_MINOR:
            options = ["--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s", "--pod-selector", selector]
            self.kubectl("drain", node, *options)
            return
        self.kubectl("cordon", node)
        eviction = {"apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": {"name": pod}}
        eviction["metadata"] |= {"namespace": NAMESPACE}
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
        self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        self.kubectl("wait", "--for=delete", f"pod/{pod}", "--timeout=600s")

    def image(self, name: str) -> str:
        return f"{self.registry}/{name}:{self.tag}"

    def events(self) -> str:
        return self.kubectl("get", "events", "-o", "json")

    @contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """`kubectl port-forward` to a free local port; yields the address."""
        command = [path_of(KUBECTL), "-n", NAMESPACE, "port-forward", target, f":{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | self.environment) as process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                assert line.startswith("Forwarding from 127.0.0.1:"), line
                yield f"http://{line.split()[2]}"
            finally:
                process.terminate()


def lent_cluster(folder: Path) -> Cluster:
    """The cluster of KUBECONFIG; it can pull, or has been given, the images of IMAGE_REGISTRY with IMAGE_TAG."""
    lent = Cluster(
        kubeconfig=os.environ["KUBECONFIG"],
        registry=os.environ["IMAGE_REGISTRY"],
        tag=os.environ["IMAGE_TAG"],
        pull_policy="IfNotPresent",
        many_writers=os.environ.get("MANY_WRITERS_CLASS"),
    )
    if lent.minor < OLDEST_MINOR:
        lent.chart = relaxed_chart(folder)
    return lent


@contextmanager
def own_cluster(folder: Path, archives: Iterable[Path], *, registry: str, tag: str) -> Iterator[Cluster]:
    """Start the shared cluster, load archives of images into it, stop it. While it starts, and while one archive is
    loaded, the next one is made."""
    try:
        with ThreadPoolExecutor(1) as one_by_one:
            starting = one_by_one.submit(start)
            loading = [one_by_one.submit(load, archive) for archive in archives]
        exported = starting.result().split()  # first: where it did not start, nothing could be loaded
        for loaded in loading:
            loaded.result()
        kubeconfig = next(word.removeprefix("KUBECONFIG=") for word in exported if word.startswith("KUBECONFIG="))
        yield Cluster(kubeconfig, registry, tag, "Never", "shared", relaxed_chart(folder))
    finally:
        run(SHARED / "down")


def start() -> str:
    """What `up` says. It is tried twice: beside builds of images it has failed where it then succeeded."""
    try:
        return run(SHARED / "up")
    except CommandFailed:
        return run(SHARED / "up")


STATES = (
    "{.metadata.name}|{.metadata.deletionTimestamp}|{.status.containerStatuses[*].state.running.startedAt}|"
    "{.status.containerStatuses[*].state.terminated.exitCode}"
    '{.status.containerStatuses[*].lastState.terminated.exitCode}{"\\n"}'
)
"""Of a pod: its name, since when it is to go, what of it runs, and what has ended, even if a kubelet found no trace of
it any more."""


@contextmanager
def ended_pods_removed(cluster: Cluster, selector: str) -> Iterator[None]:
    """A deleted pod goes when its last container has ended, as with today's kubelets. Older ones leave it until they
    come by again, which is up to a minute later; so long its successor would be waited for."""
    watch = [path_of(KUBECTL), "-n", NAMESPACE, "get", "pods", "-l", selector, "--watch", "-o", f"jsonpath={STATES}"]
    with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True, env=os.environ | cluster.environment) as process:
        remover = Thread(target=remove_ended, args=(cluster, process.stdout))
        remover.start()
        try:
            yield
        finally:
            process.terminate()
            remover.join()


def remove_ended(cluster: Cluster, states: Iterable[str]) -> None:
    for line in states:
        name, deleted, running, ended = line.rstrip("\n").split("|")
        if deleted and ended and not running:
            with suppress(CommandFailed):  # it would go by itself
                cluster.kubectl("delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found")


def load(archive: Path) -> None:
    run(SHARED / "load", archive)
    archive.unlink()


def relaxed_chart(folder: Path) -> Path:
    """A copy of the chart that an older Kubernetes takes; nothing but `kubeVersion` differs."""
    copy = folder / "internlm-chat"
    shutil.copytree(CHART, copy)
    file = copy / "Chart.yaml"
    file.write_text(file.read_text().replace('kubeVersion: ">=1.25.0-0"', 'kubeVersion: ">=1.20.0-0"'))
    return copy


def reason_to_skip() -> str:
    """Why there is no cluster for the suite; "" if there is one."""
    if not os.environ.get("E2E"):
        return "installs into a real cluster (minutes, root): set E2E=1"
    if os.environ.get("KUBECONFIG"):
        missing = [name for name in ("IMAGE_REGISTRY", "IMAGE_TAG") if not os.environ.get(name)]
        return f"KUBECONFIG is set, {' and '.join(missing)} not" if missing else ""
    if not (SHARED / "up").exists():
        return f"no KUBECONFIG, and no cluster to start in {SHARED}"
    return "" if os.geteuid() == 0 else "no KUBECONFIG, and starting a cluster needs root"


def pod_manifest(name: str, image: str, pull_policy: str, command: list[str], **spec: Any) -> Manifest:
    """A pod that passes the restricted Pod Security standard."""
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": name, "image": image, "imagePullPolicy": pull_policy, "command": command}
    container |= {"securityContext": restricted} | spec.pop("container", {})
    pod = {"containers": [container], "enableServiceLinks": False, "automountServiceAccountToken": False}
    pod |= {"securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}}
    pod |= {"terminationGracePeriodSeconds": 1} | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": pod}
