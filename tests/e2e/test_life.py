"""One release's life: installed, asked, upgraded, rolled back, moved, and taken away again. The order matters."""

import json
import time
import urllib.request

import pytest

from tests.e2e.release import API_KEY, DISTINCT_WORD, REPOSITORY, TOKEN, Release
from tests.support.cluster import CommandFailed
from tests.support.fake_hub import COMMIT
from tests.support.helm import NAME, RELEASE

LONG = 15
"""Seconds of an answer that is under way when its pod is told to stop, several times what comes before."""
LONGER = 30
"""The same where a Job runs before."""
WRONG_KEY = "sk-wrong-5e1f"
LINKS = f"stat -c %h /models/tests--smollm2@{COMMIT}/model.safetensors"


def transfers(release: Release) -> list[str]:
    """What the init containers of the serving pods say of bytes that came over the network."""
    logs = (release.cluster.kubectl("logs", pod["metadata"]["name"], "-c", "download") for pod in release.pods())
    return [line for log in logs for line in log.splitlines() if "downloading:" in line]


def test_the_init_container_brings_the_model_and_the_pod_gets_ready(release: Release) -> None:
    (pod,) = release.pods()
    (init,) = pod["status"]["initContainerStatuses"]
    assert init["state"]["terminated"]["exitCode"] == 0
    assert init["restartCount"] == 0
    (server,) = pod["status"]["containerStatuses"]
    assert server["ready"]
    assert server["restartCount"] == 0
    claim = release.cluster.get("pvc", f"{NAME}-model")
    assert claim["status"]["phase"] == "Bound"
    assert transfers(release) != []


def test_helm_test_asks_the_model_and_passes(release: Release) -> None:
    said = release.cluster.helm("test", RELEASE, "--logs", "--timeout", "300s")
    assert "Succeeded" in said
    assert "models: smollm2" in said
    assert "counted: yes" in said


def test_a_pod_asks_by_the_services_name(release: Release) -> None:
    outcome = release.ask({"stream": False, "max_new_tokens": 16, "temperature": 0}).outcome()
    assert outcome["status"] == 200, outcome
    assert outcome["whole"]


def test_port_forward_and_the_tutorials_call(release: Release) -> None:
    with release.cluster.forward(f"service/{NAME}", 6006) as url:
        body = json.dumps({"prompt": "What is the capital of France?", "temperature": 0}).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"}
        request = urllib.request.Request(url + "/v1/chat", body, headers)
        answer = json.load(urllib.request.urlopen(request, timeout=300))
    assert answer["status"] == 200
    assert "Paris" in answer["response"]
    assert set(answer) >= {"response", "status", "time"}


def test_without_a_key_nothing_is_answered(release: Release) -> None:
    assert release.ask(key=WRONG_KEY).outcome()["status"] == 401


def test_the_containers_run_restricted(release: Release) -> None:
    (pod,) = release.pods()
    name = pod["metadata"]["name"]
    status = release.cluster.kubectl("exec", name, "-c", "server", "--", "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split("\t")[0] == "10001"
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    with pytest.raises(CommandFailed, match="Read-only file system"):
        release.cluster.kubectl("exec", name, "-c", "server", "--", "touch", "/opt/x")
    with pytest.raises(CommandFailed, match="Read-only file system"):
        release.cluster.kubectl("exec", name, "-c", "server", "--", "touch", "/models/x")


def test_a_changed_setting_replaces_the_pod_and_an_answer_under_way_ends_whole(release: Release) -> None:
    (before,) = release.pods()
    body = release.lasting(LONGER)
    asked = release.ask(body)
    asked.started()
    release.upgrade({"settings": {"maxQueue": 7}} | release.with_preflight)
    outcome = asked.outcome()
    assert (outcome["status"], outcome["whole"], outcome["reason"]) == (200, True, "length"), outcome
    assert outcome["tokens"] == body["max_new_tokens"]
    assert outcome["ended"] > release.time_of_sigterm(before)
    (after,) = release.pods()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    environment = release.cluster.kubectl("exec", after["metadata"]["name"], "-c", "server", "--", "env")
    assert "INTERNLM_MAX_QUEUE=7" in environment
    assert transfers(release) == [], "the model was there"
    assert f"{NAME}-preflight" in release.cluster.events(), "settings and images were tried before"
    assert release.cluster.get("jobs")["items"] == [], "which leaves nothing behind"


def test_an_upgrade_without_a_change_replaces_nothing(release: Release) -> None:
    (before,) = release.pods()
    release.upgrade({"settings": {"maxQueue": 7}})
    (after,) = release.pods()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_new_image_is_rolled_out_and_rolled_back(release: Release) -> None:
    newer = release.values["image"] | {"server": {"name": "server-cpu"}, "tag": release.newer_tag}
    downloader = {"name": "downloader"}
    release.upgrade({"image": newer | {"downloader": downloader}})
    (pod,) = release.pods()
    assert pod["spec"]["containers"][0]["image"].endswith(":" + release.newer_tag)
    release.cluster.helm("rollback", RELEASE, "1", "--wait", "--timeout", "600s")
    (pod,) = release.pods()
    assert pod["spec"]["containers"][0]["image"].endswith(":" + release.cluster.tag)
    assert release.ask({"max_new_tokens": 8}).outcome()["whole"]


def test_a_deleted_pod_ends_its_answer(release: Release) -> None:
    (pod,) = release.pods()
    body = release.lasting(LONG)
    asked = release.ask(body)
    asked.started()
    release.cluster.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    outcome = asked.outcome()
    assert (outcome["whole"], outcome["reason"], outcome["tokens"]) == (True, "length", body["max_new_tokens"]), outcome
    assert outcome["ended"] > release.time_of_sigterm(pod)
    release.wait_ready()


def test_a_drained_node_lets_its_answer_end(release: Release) -> None:
    """Only the release's pod is evicted: the hub and the client stay, so that the suite goes on."""
    (pod,) = release.pods()
    asked = release.ask(release.lasting(LONG))
    asked.started()
    node, name = pod["spec"]["nodeName"], pod["metadata"]["name"]
    try:
        release.cluster.drain(node, name, f"app.kubernetes.io/instance={RELEASE}")
        outcome = asked.outcome()
        assert (outcome["whole"], outcome["reason"]) == (True, "length"), outcome
        assert outcome["ended"] > release.time_of_sigterm(pod)
        assert name not in [pod["metadata"]["name"] for pod in release.pods()]
    finally:
        release.cluster.kubectl("uncordon", node)
    release.wait_ready()


def test_an_upgrade_to_a_model_that_cannot_be_had_changes_nothing(release: Release) -> None:
    (before,) = release.pods()
    wrong = release.values["model"] | {"repository": "tests/missing"}
    with pytest.raises(CommandFailed) as failed:
        release.upgrade({"model": wrong})
    assert "tests/missing" in str(failed.value), "helm says why"
    assert "not-found" in str(failed.value)
    (after,) = release.pods()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert release.ask({"max_new_tokens": 8}).outcome()["whole"]
    release.upgrade()
    (again,) = release.pods()
    assert again["metadata"]["uid"] == before["metadata"]["uid"]


def test_an_upgrade_to_an_image_that_cannot_be_had_changes_nothing(release: Release) -> None:
    """The only pod would otherwise have ended before anyone knew."""
    (before,) = release.pods()
    missing = {"image": release.values["image"] | {"tag": "never-built"}} | release.with_preflight
    with pytest.raises(CommandFailed, match=f"{NAME}-preflight"):
        release.upgrade(missing, patience=15)
    (after,) = release.pods()
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert release.ask({"max_new_tokens": 8}).outcome()["whole"]
    tried = release.cluster.get("pods", "-l", "app.kubernetes.io/component=preflight")["items"][0]
    assert "never-built" in json.dumps(tried["status"]), "where the operator looks"
    release.upgrade()
    (again,) = release.pods()
    assert again["metadata"]["uid"] == before["metadata"]["uid"]


def test_a_second_replica_shares_the_volume_and_downloads_nothing(release: Release) -> None:
    if not release.cluster.many_writers:
        pytest.skip("the cluster has no volumes for many writers (MANY_WRITERS_CLASS)")
    (before,) = release.pods()
    release.upgrade({"replicas": 2})
    pods = release.pods()
    assert len(pods) == 2
    assert before["metadata"]["uid"] in [pod["metadata"]["uid"] for pod in pods], "it went on serving"
    assert len({pod["spec"]["volumes"][-1]["name"] for pod in pods}) == 1
    assert transfers(release) == []
    assert "counted: yes" in release.cluster.helm("test", RELEASE, "--logs", "--timeout", "300s")


def test_another_revision_is_there_before_the_old_pod_goes(release: Release) -> None:
    release.upgrade()
    (before,) = release.pods()
    asked = release.ask(release.lasting(LONGER))
    asked.started()
    release.upgrade({"model": release.values["model"] | {"revision": COMMIT}})
    outcome = asked.outcome()
    assert outcome["whole"]
    assert outcome["ended"] > release.time_of_sigterm(before)
    (after,) = release.pods()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert transfers(release) == [], "the Job had brought it"
    environment = release.cluster.kubectl("exec", after["metadata"]["name"], "-c", "server", "--", "env")
    assert f"INTERNLM_MODEL_DIR=/models/tests--smollm2@{COMMIT}" in environment
    names = [each["metadata"]["name"] for each in release.cluster.get("jobs")["items"]]
    assert f"{NAME}-prefetch" not in names, "it leaves nothing behind"
    files = release.cluster.kubectl("exec", after["metadata"]["name"], "-c", "server", "--", "sh", "-c", LINKS)
    assert files.split() == ["2"], "the weights are there once, under two names"


def test_a_wrong_repository_says_so_where_the_operator_looks(release: Release) -> None:
    wrong = release.values["model"] | {"repository": "tests/missing"}
    release.upgrade({"model": wrong, "rollout": release.values["rollout"] | {"prefetch": False}}, wait=False)
    deadline = time.monotonic() + 300
    message = ""
    while not message and time.monotonic() < deadline:
        message = termination_message(release)
        time.sleep(1)
    assert "tests/missing" in message
    assert "404" in message or "not" in message
    release.upgrade()


def termination_message(release: Release) -> str:
    """What the init container of the newest pod left behind, for `kubectl describe pod`."""
    for pod in release.pods():
        for init in pod["status"].get("initContainerStatuses", []):
            ended = init["state"].get("terminated") or init.get("lastState", {}).get("terminated") or {}
            if ended.get("exitCode"):
                return str(ended.get("message", ""))
    return ""


def test_no_secret_and_no_prompt_shows_anywhere(release: Release) -> None:
    """In nothing that the release has left so far: manifests, events, logs of pods that are gone, last words."""
    assert release.ask({"max_new_tokens": 8}).outcome()["whole"]
    release.remember()
    shown = release.cluster.events() + release.cluster.helm("get", "all", RELEASE) + "".join(release.said)
    for told in ("POST /v1/chat 200", "POST /v1/chat 401", "downloading:", "tests/missing", REPOSITORY):
        assert told in shown, "what could have shown a secret is all there"
    for secret in (TOKEN, API_KEY, WRONG_KEY, DISTINCT_WORD):
        assert secret not in shown


def test_uninstall_keeps_the_model_and_a_reinstall_needs_no_hub(release: Release) -> None:
    claim = release.cluster.get("pvc", f"{NAME}-model")["metadata"]["uid"]
    release.cluster.helm("uninstall", RELEASE, "--wait", "--timeout", "600s")
    assert release.cluster.get("deployments")["items"] == []
    assert release.cluster.get("pvc", f"{NAME}-model")["metadata"]["uid"] == claim
    release.hub.stop()
    release.install("helm install --wait on the volume that was kept, with no hub")
    assert release.cluster.get("pvc", f"{NAME}-model")["metadata"]["uid"] == claim
    assert transfers(release) == []
    assert release.ask({"max_new_tokens": 8}).outcome()["whole"]
