"""A policy engine (checkov) reads every rendered combination: the restricted Pod Security rules, and more."""

import json
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.support.helm import CHART, Manifest, render
from tests.support.tools import python_with

ENGINE = "checkov==3.3.30"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
RESTRICTED = {
    "CKV_K8S_16",  # privileged
    "CKV_K8S_17",  # hostPID
    "CKV_K8S_18",  # hostIPC
    "CKV_K8S_19",  # hostNetwork
    "CKV_K8S_20",  # allowPrivilegeEscalation
    "CKV_K8S_23",  # runAsNonRoot
    "CKV_K8S_25",  # added capabilities
    "CKV_K8S_26",  # hostPort
    "CKV_K8S_31",  # seccompProfile
    "CKV_K8S_37",  # capabilities not dropped
}
"""The engine's names for what the restricted Pod Security standard asks for."""
ON_PURPOSE = {
    ("CKV_K8S_21", "*"): "the namespace is the one of `helm install`",
    ("CKV_K8S_43", "*"): "image.server.digest is the operator's to set",
    ("CKV_K8S_15", "*"): "a published tag is never moved",
    ("CKV_K8S_11", "*"): "a CPU limit throttles the process that feeds the GPU",
    ("CKV_K8S_8", "Pod"): "the pod of `helm test` serves nothing",
    ("CKV_K8S_9", "Pod"): "the pod of `helm test` serves nothing",
    ("CKV2_K8S_6", "Pod"): "networkPolicy.enabled is a flag, and covers the serving pods",
}
"""(rule, kind) that the chart does not follow, and why."""


def broken_rules(folder: Path) -> set[tuple[str, str]]:
    """(rule, kind) for every object in the folder's files that the engine refuses."""
    options = ["--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "--soft-fail", "-o", "json"]
    command = [python_with(ENGINE), "-m", "checkov.main", "-d", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 0
    return {(each["check_id"], each["resource"].partition(".")[0]) for each in report["results"]["failed_checks"]}


def write(folder: Path, name: str, manifests: list[Manifest]) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(manifests))


def test_a_policy_engine_finds_nothing_that_is_not_on_purpose(tmp_path: Path) -> None:
    for file in CI_VALUES:
        write(tmp_path, file.stem, render(files=[file]))
    rest = {(rule, kind) for rule, kind in broken_rules(tmp_path) if not {(rule, kind), (rule, "*")} & set(ON_PURPOSE)}
    assert rest == set()


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
def test_the_engine_sees_each_restricted_rule_broken(tmp_path: Path, kind: str) -> None:
    """So that its silence above means something; the rules are those of the restricted Pod Security standard."""
    workload = render({"storage": {"perReplica": kind == "StatefulSet"}}).workload
    pod = workload["spec"]["template"]["spec"]
    pod |= {"hostPID": True, "hostIPC": True, "hostNetwork": True, "securityContext": {}}
    server = pod["containers"][0]
    server["ports"][0]["hostPort"] = 80
    server["securityContext"] = {"privileged": True, "capabilities": {"add": ["SYS_ADMIN"]}}
    write(tmp_path, "broken", [workload])
    found: defaultdict[str, set[str]] = defaultdict(set)
    for rule, of in broken_rules(tmp_path):
        found[of].add(rule)
    assert found[kind] >= RESTRICTED
