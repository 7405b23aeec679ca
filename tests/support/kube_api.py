"""As much of a Kubernetes API as `lookup` in a chart asks for: discovery, and single objects by their names."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KINDS = {
    "v1": ("ConfigMap", "PersistentVolumeClaim", "Pod", "Service", "ServiceAccount"),
    "apps/v1": ("Deployment", "StatefulSet"),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "networking.k8s.io/v1": ("NetworkPolicy",),
}
"""Kinds that a client is told there are; helm 4 asks for those of every object it is to send."""

Manifest = dict[str, Any]


@contextmanager
def running_api(objects: list[Manifest], folder: Path, version: str = "v1.34.0") -> Iterator[Path]:
    """Serves these objects, each with kind, name and namespace; yields a kubeconfig for it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(_answers(objects, version)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    config = folder / "kubeconfig"
    config.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{server.server_address[1]}")))
    try:
        yield config
    finally:
        server.shutdown()
        server.server_close()


def _answers(objects: list[Manifest], version: str) -> dict[str, Manifest]:
    """What each path is answered."""
    answers: dict[str, Manifest] = {
        "/version": {"gitVersion": version, "major": version[1:].split(".")[0], "minor": version.split(".")[1]},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
        "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(v) for v in KINDS if "/" in v]},
    }
    for group, kinds in KINDS.items():
        answers[f"/{'apis' if '/' in group else 'api'}/{group}"] = _resources(group, kinds)
    for each in objects:
        meta = each["metadata"]
        root = f"/{'apis' if '/' in each['apiVersion'] else 'api'}/{each['apiVersion']}"
        answers[f"{root}/namespaces/{meta['namespace']}/{_plural(each['kind'])}/{meta['name']}"] = each
    return answers


def _group(version: str) -> Manifest:
    name, _, number = version.partition("/")
    return {"name": name, "versions": [{"groupVersion": version, "version": number}]}


def _resources(version: str, kinds: tuple[str, ...]) -> Manifest:
    resources = [{"name": _plural(kind), "kind": kind, "namespaced": True, "verbs": ["get"]} for kind in kinds]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _plural(kind: str) -> str:
    return f"{kind.lower()}s"


def _handler_for(answers: dict[str, Manifest]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _kubeconfig(address: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
