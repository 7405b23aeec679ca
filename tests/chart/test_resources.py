"""CPU and memory of the three containers: what a value names, over the defaults."""

import re
from pathlib import Path

import pytest
import yaml

from tests.chart.conftest import Complaints
from tests.chart.upgrades import claim, deployed
from tests.support.helm import CHART, Values, render, render_upgrade

GPU = {"nvidia.com/gpu": "1"}
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


def test_a_gpu_may_be_claimed_instead_of_counted() -> None:
    values: Values = {"gpu": {"claimTemplate": "one-gpu"}}
    claimed = render(values)
    assert claimed.pod["resourceClaims"] == [{"name": "server-gpu", "resourceClaimTemplateName": "one-gpu"}]
    limits = {"memory": "32Gi"}
    assert claimed.server["resources"] == {
        "claims": [{"name": "server-gpu"}],
        "requests": DEFAULT_REQUESTS,
        "limits": limits,
    }
    assert "claims" not in claimed.download["resources"]
    del claimed.pod["resourceClaims"]
    claimed.server["resources"] = render().server["resources"]
    assert claimed.pod == render().pod
    assert render(values | {"mode": "cpu"}).pod == render({"mode": "cpu"}).pod


def test_the_readme_shows_a_template_that_kubernetes_takes(complaints: Complaints) -> None:
    (shown,) = re.findall(r"## A GPU by a claim\n.*?```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    manifests = render(yaml.safe_load(shown), kubernetes="1.35.0")
    (claim,) = manifests.pod["resourceClaims"]
    assert claim["resourceClaimTemplateName"] == manifests.one("ResourceClaimTemplate")["metadata"]["name"]
    assert complaints([("1.35.0", each) for each in manifests]) == ""


def test_devices_of_other_kinds_may_be_claimed_beside_it() -> None:
    nic = {"name": "nic", "resourceClaimTemplateName": "one-nic"}
    values: Values = {
        "gpu": {"claimTemplate": "one-gpu"},
        "resources": {"claims": [{"name": "nic"}]},
        "pod": {"extraSpec": {"resourceClaims": [nic], "schedulerName": "volcano"}},
    }
    gpu = {"name": "server-gpu", "resourceClaimTemplateName": "one-gpu"}
    manifests = render(values)
    assert manifests.pod["resourceClaims"] == [gpu, nic]
    assert manifests.pod["schedulerName"] == "volcano"
    assert manifests.server["resources"]["claims"] == [{"name": "server-gpu"}, {"name": "nic"}]
    assert render(values | {"gpu": {}}).pod["resourceClaims"] == [nic]


def test_no_pod_but_the_servers_claims_a_device(tmp_path: Path) -> None:
    """One that the serving pod holds would keep the others waiting for ever."""
    values: Values = yaml.safe_load((CHART / "ci" / "claim-values.yaml").read_text()) | {"model": {"revision": "v2"}}
    manifests = render_upgrade(values, [*deployed({}), claim()], tmp_path)
    assert len(manifests.pod["resourceClaims"]) == 2
    jobs = [job["spec"]["template"]["spec"] for job in manifests.all("Job")]
    assert len(jobs) == 2, "of the image and of the model"
    for pod in (render(values).one("Pod")["spec"], *jobs):
        assert "resourceClaims" not in pod
        assert not [each for each in pod["containers"] if "claims" in each["resources"]]


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
