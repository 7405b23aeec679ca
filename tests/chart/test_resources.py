"""CPU and memory of the three containers: what a value names, over the defaults."""

import pytest

from tests.support.helm import Values, render

GPU = {"nvidia.com/gpu": 1}
# Of the 4 CPUs and 16 GB that most nodes with one GPU of 24 GB have, what Kubernetes and what else runs there leave.
DEFAULT_REQUESTS = {"cpu": "3", "memory": "10Gi"}

CASES: dict[str, tuple[Values, Values]] = {
    "nothing": ({}, {"requests": DEFAULT_REQUESTS, "limits": GPU | {"memory": "32Gi"}}),
    "a limit": (
        {"limits": {"memory": "64Gi"}},
        {"requests": DEFAULT_REQUESTS, "limits": GPU | {"memory": "64Gi"}},
    ),
    "a request": (
        {"requests": {"cpu": 8}},
        {"requests": {"cpu": 8, "memory": "10Gi"}, "limits": GPU | {"memory": "32Gi"}},
    ),
    "a name without a default": (
        {"limits": {"ephemeral-storage": "1Gi"}},
        {"requests": DEFAULT_REQUESTS, "limits": GPU | {"memory": "32Gi", "ephemeral-storage": "1Gi"}},
    ),
    "null for a name": (
        {"requests": {"memory": None}, "limits": {"memory": None}},
        {"requests": {"cpu": "3"}, "limits": GPU},
    ),
    "null for all requests": ({"requests": None}, {"limits": GPU | {"memory": "32Gi"}}),
    "null for all limits": ({"limits": None}, {"requests": DEFAULT_REQUESTS, "limits": GPU}),
    "claims of devices": (
        {"claims": [{"name": "nic"}]},
        {"claims": [{"name": "nic"}], "requests": DEFAULT_REQUESTS, "limits": GPU | {"memory": "32Gi"}},
    ),
    "a limit below the default request": (
        {"limits": {"memory": "8Gi", "cpu": "1500m"}},
        {"requests": {"cpu": "1500m", "memory": "8Gi"}, "limits": GPU | {"memory": "8Gi", "cpu": "1500m"}},
    ),
    "a limit in bytes": (
        {"limits": {"memory": 8589934592}},
        {"requests": {"cpu": "3", "memory": "8589934592"}, "limits": GPU | {"memory": 8589934592}},
    ),
    "a request above the default limit": (
        {"requests": {"memory": "40G"}},
        {"requests": {"cpu": "3", "memory": "40G"}, "limits": GPU | {"memory": "40G"}},
    ),
}


@pytest.mark.parametrize(("named", "expected"), CASES.values(), ids=CASES.keys())
def test_what_is_not_named_keeps_its_default(named: Values, expected: Values) -> None:
    assert render({"resources": named}).server["resources"] == expected


def test_mode_cpu_has_defaults_of_its_own() -> None:
    resources = render({"mode": "cpu", "resources": {"limits": {"memory": "8Gi"}}}).server["resources"]
    assert resources == {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "8Gi"}}


def test_init_container_and_test_pod_can_be_fitted_as_well() -> None:
    plain = render()
    assert plain.download["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"memory": "1Gi"},
    }
    own = {"requests": {"cpu": 1}, "limits": {"cpu": 2}}
    fitted = render({"downloader": {"resources": own}, "test": {"resources": own}})
    assert fitted.download["resources"] == {
        "requests": {"cpu": 1, "memory": "256Mi"},
        "limits": {"cpu": 2, "memory": "1Gi"},
    }
    (test,) = fitted.one("Pod")["spec"]["containers"]
    assert test["resources"] == {"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"cpu": 2, "memory": "128Mi"}}
    assert fitted.server["resources"] == plain.server["resources"]
