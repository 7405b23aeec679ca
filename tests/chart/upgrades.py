"""A release as it is in a cluster, and what an upgrade of it makes."""

from tests.support.helm import NAME, NAMESPACE, Manifest, Manifests, Values, render


def deployed(values: Values, *, ready: int = 1) -> list[Manifest]:
    """The workload that such a release has, with as many pods ready."""
    workload = render(values).workload
    workload["metadata"]["namespace"] = NAMESPACE
    return [workload | {"status": {"readyReplicas": ready} if ready else {}}]


def claim(name: str = f"{NAME}-model") -> Manifest:
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": NAMESPACE}}


def merged(*values: Values) -> Values:
    """Sections of later values over those of earlier ones."""
    sections = {name for each in values for name in each}
    return {name: {k: v for each in values for k, v in each.get(name, {}).items()} for name in sections}


def jobs(manifests: Manifests) -> list[str]:
    return [each["metadata"]["name"] for each in manifests.all("Job")]


def only_container(job: Manifest) -> Manifest:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector takes a pod with these labels; of operators the chart knows `In` alone."""
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions)
    same = selector.get("matchLabels", {}).items() <= labels.items()
    return same and all(labels.get(each["key"]) in each["values"] for each in expressions)
