"""The release under test, the hub it downloads from, and a client in the cluster that asks it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.support.cluster import NAMESPACE, ROOT, Cluster, CommandFailed, pod_manifest
from tests.support.helm import NAME, RELEASE, Manifest, Values
from tests.support.tools import KUBECTL, path_of

REPOSITORY = "tests/smollm2"
TOKEN = "e2e-hub-token-7f3a91"
API_KEY = "sk-e2e-0c1d2e3f4a5b6c7d8e9f"
DISTINCT_WORD = "Ardnamurchan"
QUESTION = f"Tell me the story of the lighthouse at {DISTINCT_WORD}."
CLIENT = "client"
CHAT_SCRIPT = ROOT / "tests" / "e2e" / "ask.py"
# So hot that the model hardly ever ends by itself: an answer is as long as it is asked to be.
ENDLESS: Values = {"temperature": 5, "top_k": 0, "top_p": 1, "repetition_penalty": 1, "seed": 7}
SAMPLE = 24
"""Tokens that tell how fast the cluster answers now."""
PATIENCE = 600
"""Seconds that helm waits."""
PRE_STOP_DELAY = 1
"""Seconds a pod goes on that is to stop: nobody asks it anything new here, and each one that is replaced costs them."""


class Hub:
    """A ModelScope hub in the cluster that serves the small model, in InternLM3's layout, to who has the token."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    @property
    def endpoint(self) -> str:
        return f"http://hub.{NAMESPACE}:8080"

    def start(self) -> None:
        script = (ROOT / "tests" / "support" / "fake_hub.py").read_text()
        serve = (
            f"exec python /hub/fake_hub.py /opt/internlm-chat/models/smollm2*[0-9] --repo {REPOSITORY} --token {TOKEN}"
        )
        mounts = {"volumeMounts": [{"name": "hub", "mountPath": "/hub"}]}
        volumes = [{"name": "hub", "configMap": {"name": "hub"}}]
        server = self._cluster.image("server-cpu")
        pull = self._cluster.pull_policy
        self._cluster.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hub"}, "data": {"fake_hub.py": script}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub-token"}, "stringData": {"token": TOKEN}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "api-keys"}, "stringData": {"keys": API_KEY}},
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "hub"},
                "spec": {"selector": {"app": "hub"}, "ports": [{"port": 8080}]},
            },
            pod_manifest("hub", server, pull, ["sh", "-c", serve], container=mounts, volumes=volumes),
            pod_manifest(CLIENT, server, pull, ["sleep", "infinity"]),
        )
        self._cluster.kubectl("wait", "--for=condition=Ready", "pod/hub", f"pod/{CLIENT}", "--timeout=300s")

    def stop(self) -> None:
        """From now on nothing can be downloaded."""
        self._cluster.kubectl("delete", "pod", "hub", "--wait")


@dataclass
class Asked:
    """A question that runs in the client pod; `started` returns at its first token, `outcome` at its end."""

    process: subprocess.Popen[str]

    def started(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("first"), line + self.process.stdout.read()

    def outcome(self) -> dict[str, Any]:
        """Status, seconds, time of its end, number of tokens, whether the stream ended whole, and why it ended."""
        output, _ = self.process.communicate(timeout=900)
        return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]


def container_names(pod: Manifest) -> list[str]:
    spec = pod["spec"]
    return [each["name"] for each in (*spec.get("initContainers", []), *spec["containers"])]


@dataclass
class Release:
    """`helm install` and what can be done to its outcome."""

    cluster: Cluster
    hub: Hub
    tell: Callable[[str], None]
    """Says how long what an operator waits for has taken."""
    said: list[str] = field(default_factory=list)
    """Logs and pods as they were before each change of the release: a replaced pod takes its log with it."""

    @property
    def values(self) -> Values:
        shared = {"accessMode": "ReadWriteMany", "storageClass": self.cluster.many_writers}
        return {
            "mode": "cpu",
            "startupBudget": 600,
            "requestTimeout": 400,
            "model": {
                "source": "modelscope",
                "repository": REPOSITORY,
                "endpoint": self.hub.endpoint,
                "size": "280M",
                "tokenSecret": {"name": "hub-token"},
            },
            "storage": {"size": "1Gi"} | (shared if self.cluster.many_writers else {}),
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
            "image": {
                "registry": self.cluster.registry,
                "tag": self.cluster.tag,
                "pullPolicy": self.cluster.pull_policy,
            },
            "apiKeys": {"secretName": "api-keys"},
            "ingress": {"enabled": True},
            "monitoring": {"scrape": "annotations"},
            "rollout": {"preStopDelay": PRE_STOP_DELAY, "preflight": False},
        }

    @property
    def with_preflight(self) -> Values:
        """For an upgrade before which images and settings are tried, as is the default. It takes longer."""
        return {"rollout": self.values["rollout"] | {"preflight": True}}

    @property
    def newer_tag(self) -> str:
        """Another tag of the same image."""
        return os.environ.get("NEWER_IMAGE_TAG", "newer")

    def install(self, what: str = "helm install --wait, model downloaded") -> None:
        begin = time.monotonic()
        self._helm("install")
        self.tell(f"{what}: {time.monotonic() - begin:.0f} s")

    def upgrade(self, changes: Values | None = None, *, wait: bool = True, patience: int = PATIENCE) -> None:
        """To `values` and `changes`, which replace whole top-level keys."""
        self.remember()
        self._helm("upgrade", changes or {}, wait=wait, patience=patience)

    def remember(self) -> None:
        """Keep what the pods say now."""
        self.said += [self.logs(), json.dumps(self.pods())]

    def _helm(self, verb: str, changes: Values | None = None, *, wait: bool = True, patience: int = PATIENCE) -> None:
        waiting = ["--wait", "--timeout", f"{patience}s"] if wait else []
        self.cluster.helm(verb, RELEASE, str(self.cluster.chart), *waiting, values=self.values | (changes or {}))

    def pods(self) -> list[Manifest]:
        """The serving pods that are not on their way out."""
        selector = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=server"
        found: list[Manifest] = self.cluster.get("pods", "-l", selector)["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def wait_ready(self) -> None:
        self.cluster.kubectl("rollout", "status", f"deployment/{NAME}", "--timeout=600s")

    def ask(self, body: Values | None = None, key: str = API_KEY) -> Asked:
        """Ask from the client pod by the Service's name, streaming."""
        said = json.dumps({"prompt": QUESTION, "stream": True} | (body or {}))
        script = ["python", "-", f"http://{NAME}:6006", said, key]
        command = [path_of(KUBECTL), "-n", NAMESPACE, "exec", "-i", CLIENT, "--", *script]
        with CHAT_SCRIPT.open() as script:
            process = subprocess.Popen(
                command,
                stdin=script,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | self.cluster.environment,
            )
        return Asked(process)

    def lasting(self, seconds: float) -> Values:
        """A body whose answer takes as long, on whatever machine, if it answers as fast as it does now."""
        sample = self.ask(ENDLESS | {"max_new_tokens": SAMPLE}).outcome()
        rate = (sample["tokens"] - 1) / (sample["seconds"] - sample["first"])
        return ENDLESS | {"max_new_tokens": round(rate * seconds)}

    def time_of_sigterm(self, pod: Manifest) -> float:
        """When the server of a pod that was stopped got its signal, to a second."""
        selector = f"reason=Killing,involvedObject.uid={pod['metadata']['uid']}"
        (event,) = self.cluster.get("events", "--field-selector", selector)["items"]
        full_second = datetime.fromisoformat(event["firstTimestamp"]).timestamp()
        return full_second + 1 + PRE_STOP_DELAY

    def logs(self) -> str:
        """Everything the release's containers have said, as far as the cluster keeps it."""
        pods = self.cluster.get("pods", "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
        return "".join(self._log(pod["metadata"]["name"], name) for pod in pods for name in container_names(pod))

    def _log(self, pod: str, container: str) -> str:
        try:
            return self.cluster.kubectl("logs", pod, "-c", container)
        except CommandFailed:
            return ""  # it has not begun, or is gone meanwhile

    def report(self) -> None:
        """The state of things, for whoever reads a failed run."""
        for command in (("get", "pods", "-o", "wide"), ("get", "events", "--sort-by=.lastTimestamp")):
            try:
                sys.stderr.write("\n" + self.cluster.kubectl(*command)[-6000:])
            except CommandFailed as error:
                sys.stderr.write(str(error))
