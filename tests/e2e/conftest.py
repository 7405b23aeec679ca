"""The cluster, the hub in it, and the release under test. Tests run in the order of their files' lines."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.release import Hub, Release
from tests.support import cluster as clusters
from tests.support import images
from tests.support.cluster import NAMESPACE, Cluster

REASON = clusters.reason_to_skip()
NAMED_ONCE = "app.kubernetes.io/component!=test"
"""Pods whose names no other pod gets afterwards."""
SECONDS = 2400
"""Per test: the first one builds images and starts a cluster, on whatever machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(SECONDS))
            item.add_marker(pytest.mark.skipif(bool(REASON), reason=REASON))


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("chart")
    if os.environ.get("KUBECONFIG"):
        yield ready(clusters.lent_cluster(folder))
        return
    with (
        clusters.own_cluster(folder, archives(folder), registry=images.REGISTRY, tag="e2e") as own,
        clusters.ended_pods_removed(own, NAMED_ONCE),
    ):
        yield ready(own)


def archives(folder: Path) -> Iterator[Path]:
    """Of both images, each as soon as it is built. The larger one comes first: it takes longer to load."""
    for name in ("server-cpu", "downloader"):
        image = images.build(name)
        yield images.save([image, images.tagged(image, "newer")], folder / f"{name}.tar")


def ready(cluster: Cluster) -> Cluster:
    """An empty namespace that enforces the restricted Pod Security standard, where the cluster knows it."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    # Pods first: deleting a namespace can give each of them the longest grace period of all.
    cluster.kubectl("delete", "deployments,statefulsets", "--all")
    cluster.kubectl("delete", "pods", "--all", "--grace-period=1")
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    return cluster


@pytest.fixture(scope="package")
def hub(cluster: Cluster) -> Hub:
    made = Hub(cluster)
    made.start()
    return made


@pytest.fixture(scope="package")
def release(cluster: Cluster, hub: Hub, tell: Callable[[str], None]) -> Iterator[Release]:
    """The release, installed by the first test that needs it."""
    made = Release(cluster, hub, tell)
    try:
        made.install()
        yield made
    finally:
        made.report()
