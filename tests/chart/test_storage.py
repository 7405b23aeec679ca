"""The claim: made, kept, shared, brought along, or one for each replica."""

from tests.support.helm import render

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
