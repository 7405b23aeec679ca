"""The claim: made, kept, shared, brought along, or one for each replica."""

from pathlib import Path

import pytest

from tests.chart.upgrades import deployed
from tests.support.helm import HelmError, Values, render, render_upgrade

KEEP = "helm.sh/resource-policy"


def test_the_claim_outlives_the_release_unless_told_otherwise() -> None:
    claim = render().one("PersistentVolumeClaim")
    assert claim["metadata"]["name"] == "chat-internlm-chat-model"
    assert claim["metadata"]["annotations"][KEEP] == "keep"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "40Gi"}}}
    assert "annotations" not in render({"storage": {"keep": False}}).one("PersistentVolumeClaim")["metadata"]


def test_the_operators_annotations_are_on_every_claim_and_cannot_give_it_up() -> None:
    own = {"backup": "never", KEEP: "delete"}
    claim = render({"storage": {"annotations": own}}).one("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"backup": "never", KEEP: "keep"}, "storage.keep decides that"
    (template,) = render({"storage": {"annotations": own, "perReplica": True}}).one("StatefulSet")["spec"][
        "volumeClaimTemplates"
    ]
    assert template["metadata"]["annotations"] == own
    plain = render({"commonAnnotations": {"a": "b"}, "storage": {"perReplica": True}}).one("StatefulSet")
    assert "annotations" not in plain["spec"]["volumeClaimTemplates"][0]["metadata"], "they could never be changed"


def test_class_size_and_access_mode_are_the_operators() -> None:
    storage = {"storageClass": "fast", "size": "100Gi", "accessMode": "ReadWriteMany"}
    assert render({"storage": storage}).one("PersistentVolumeClaim")["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "fast",
        "resources": {"requests": {"storage": "100Gi"}},
    }


def test_a_volume_made_by_hand_needs_no_class() -> None:
    assert render({"storage": {"storageClass": "-"}}).one("PersistentVolumeClaim")["spec"]["storageClassName"] == ""


def test_an_existing_claim_is_used_and_none_is_made() -> None:
    manifests = render({"storage": {"existingClaim": "models"}})
    assert not manifests.all("PersistentVolumeClaim")
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in manifests.pod["volumes"]


def test_replicas_share_a_volume_many_can_mount() -> None:
    manifests = render({"replicas": 3, "storage": {"accessMode": "ReadWriteMany"}})
    assert manifests.one("Deployment")["spec"]["replicas"] == 3
    assert manifests.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_each_replica_can_have_a_claim_of_its_own() -> None:
    manifests = render({"replicas": 2, "storage": {"perReplica": True}})
    assert not manifests.all("Deployment")
    assert not manifests.all("PersistentVolumeClaim")
    spec = manifests.one("StatefulSet")["spec"]
    assert spec["replicas"] == 2
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    (template,) = spec["volumeClaimTemplates"]
    assert template["metadata"]["name"] == "model"
    assert template["spec"]["resources"]["requests"]["storage"] == "40Gi"
    assert "model" not in {volume["name"] for volume in manifests.pod["volumes"]}
    assert manifests.one("Service", spec["serviceName"])["spec"]["clusterIP"] == "None"


def test_claims_of_replicas_go_when_told_to() -> None:
    spec = render({"storage": {"perReplica": True, "keep": False}}).one("StatefulSet")["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"


@pytest.mark.parametrize(("was", "source"), [("modelscope", "image"), ("image", "modelscope")])
def test_an_upgrade_that_a_statefulset_cannot_have_is_refused_with_the_way_out(
    tmp_path: Path, was: str, source: str
) -> None:
    """Kubernetes would say so after the Jobs, and not how."""

    def values(source: str) -> Values:
        return {"storage": {"perReplica": True}, "model": {"source": source, "image": "r.internal/m@sha256:1"}}

    with pytest.raises(HelmError, match=r"delete statefulset chat-internlm-chat --cascade=orphan"):
        render_upgrade(values(source), deployed(values(was)), tmp_path)
    assert render_upgrade(values(was), deployed(values(was)), tmp_path).one("StatefulSet")
