"""What can go wrong between a hub and a volume, each through the real client: exact bytes, or the right cause."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.delivery import manifest as manifests
from service.delivery.hubs.catalog import PARTIAL_SUFFIX
from tests.support.download_process import assert_complete, assert_never_a_lie, download
from tests.support.fake_hub import COMMIT, LISTING, FakeHub, Fault
from tests.support.model_files import SHARDS, make_repository

FIRST, SECOND = SHARDS
IMPATIENT = {"INTERNLM_DOWNLOAD_STALL_TIMEOUT": "1"}
PATIENT = {"INTERNLM_DOWNLOAD_BUDGET": "30"}


@dataclass(frozen=True)
class Case:
    """Faults of the hub, and how the download must end: `cause` empty means with exact bytes."""

    name: str
    faults: tuple[Fault, ...] = ()
    cause: str = ""
    environment: dict[str, str] = field(default_factory=dict)


OVERCOME = [
    Case("nothing is wrong"),
    Case("the revision is a commit", environment={"INTERNLM_REVISION": COMMIT}),
    Case("the connection is cut once", (Fault("cut", 100_000, FIRST, 1),)),
    Case("every answer is cut after 64 kB", (Fault("cut", 64_000, FIRST),)),
    Case("both shards are cut before the first byte twice", (Fault("cut", 0, "*.safetensors", 4),)),
    Case("a cut transfer resumes though the hub ignores Range", (Fault("cut", 9000, FIRST, 1), Fault("no-range"))),
    Case("an answer without a length is cut before the first byte", (Fault("endless", 0, FIRST, 3),)),
    Case("an answer without a length is cut later on", (Fault("endless", 60_000, FIRST, 3),)),
    Case("one byte is wrong once", (Fault("corrupt", path=FIRST, times=1),)),
    Case("a small file is wrong once", (Fault("corrupt", path="config.json", times=1),)),
    Case("the object is shorter than listed once", (Fault("short", 1000, FIRST, 1),)),
    Case("the object is longer than listed once", (Fault("long", 1000, FIRST, 1),)),
    Case("a web page comes instead of a file once", (Fault("html", path="tokenizer.model", times=1),)),
    Case("files are redirected", (Fault("redirect"),)),
    Case("a file fails three times with 500", (Fault("status", 500, FIRST, 3),)),
    Case("a file fails with 502", (Fault("status", 502, FIRST, 1),)),
    Case("the listing fails twice with 502", (Fault("status", 502, LISTING, 2),)),
    Case("the listing is cut off once", (Fault("cut", 0, LISTING, 1),)),
    Case("the hub says 429 and when to come back", (Fault("status", 429, FIRST, 2, {"Retry-After": "1"}),)),
    Case("a file is not there once", (Fault("status", 404, FIRST, 1),)),
    Case("a file is forbidden three times", (Fault("status", 403, FIRST, 3),)),
    Case("a file needs a token once", (Fault("status", 401, FIRST, 1),)),
    Case("a transfer stalls once", (Fault("stall", 50_000, FIRST, 1),), environment=IMPATIENT),
    Case("the listing stalls once", (Fault("stall", 0, LISTING, 1),), environment=IMPATIENT),
]
FATAL = [
    Case("every answer is cut before the first byte", (Fault("cut", 0, FIRST),), "unreachable"),
    Case("one byte is always wrong", (Fault("corrupt", path=FIRST),), "integrity"),
    Case("the object is always shorter than listed", (Fault("short", 1000, FIRST),), "integrity"),
    Case("the object is always longer than listed", (Fault("long", 1000, FIRST),), "integrity"),
    Case("a web page always comes instead of a file", (Fault("html", path="config.json"),), "integrity"),
    Case("a file always fails with 500", (Fault("status", 500, FIRST),), "hub-error"),
    Case("the listing always fails with 503", (Fault("status", 503, LISTING),), "hub-error"),
    Case("the listing is a web page", (Fault("html", path=LISTING),), "bad-answer"),
    Case("the listing is always cut off", (Fault("cut", 0, LISTING),), "unreachable"),
    Case("the hub always says 429", (Fault("status", 429),), "throttled"),
    Case("a listed file is not there", (Fault("status", 404, FIRST),), "not-found"),
    Case("a file is forbidden", (Fault("status", 403, FIRST),), "forbidden"),
    Case("a file needs a token", (Fault("status", 401, FIRST),), "unauthorized"),
    Case("the repository is forbidden", (Fault("status", 403, LISTING),), "forbidden"),
    Case("the repository needs a token", (Fault("status", 401, LISTING),), "unauthorized"),
    Case("the revision is not there", (), "not-found", {"INTERNLM_REVISION": "v9"}),
    Case("the repository is not there", (), "not-found", {"INTERNLM_MODEL_REPO": "owner/other"}),
    Case("every transfer stalls", (Fault("stall", 0, FIRST),), "(stalled|timeout)", IMPATIENT),
    Case("every transfer trickles", (Fault("trickle", 50, FIRST),), "(stalled|timeout)", IMPATIENT),
    Case("the listing always stalls", (Fault("stall", 0, LISTING),), "(stalled|timeout)", IMPATIENT),
]
BOTH_SOURCES = ("cut", "wrong", "shorter", "web page", "redirected", "404", "not there", "token", "trickles", "500")
BOTH_SOURCES += ("forbidden",)
"""What the two sources handle by different code is tried with both."""


def by_source(cases: list[Case]) -> list[object]:
    both = [case for case in cases if any(word in case.name for word in BOTH_SOURCES)]
    pairs = [("modelscope", case) for case in cases] + [("huggingface", case) for case in both]
    return [pytest.param(source, case, id=f"{source}: {case.name}") for source, case in pairs]


@pytest.mark.parametrize(("source", "case"), by_source(OVERCOME))
def test_a_passing_fault_ends_with_exact_bytes(hub: FakeHub, model_dir: Path, source: str, case: Case) -> None:
    hub.faults = copies(case)
    outcome = download(model_dir, hub, **{**PATIENT, **case.environment}, INTERNLM_SOURCE=source)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    assert all(fault.seen for fault in hub.faults)


@pytest.mark.parametrize(("source", "case"), by_source(FATAL))
def test_a_lasting_fault_ends_with_its_cause_and_a_remedy(
    hub: FakeHub, model_dir: Path, tmp_path: Path, source: str, case: Case
) -> None:
    hub.faults = copies(case)
    termination_log = tmp_path / "termination-log"
    termination_log.touch()
    environment = {"INTERNLM_SOURCE": source, "INTERNLM_TERMINATION_LOG": str(termination_log), **case.environment}
    outcome = download(model_dir, hub, **environment)
    assert outcome.code == 1, outcome.log
    message = termination_log.read_text()
    assert re.match(rf"download failed: {case.cause}: ", message), message
    assert message in outcome.last_line
    assert "; " in message
    assert "\n" not in message
    assert manifests.read(model_dir) is None
    assert_never_a_lie(model_dir, hub.directory)


def test_the_listing_at_the_end_may_be_denied_once(
    hub: FakeHub, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = iter([None, Fault("status", 403)])
    monkeypatch.setattr(hub, "fault_for", lambda path: next(listings, None) if path == LISTING else None)
    outcome = download(model_dir, hub, **PATIENT, INTERNLM_SOURCE="modelscope")
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    assert next(listings, None) is None


def test_a_web_page_costs_nothing_of_what_has_arrived(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("cut", 250_000, FIRST, 1), Fault("html", path=FIRST, times=1)]
    outcome = download(model_dir, hub, **PATIENT, INTERNLM_SOURCE="huggingface")
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    ranges = [request.headers.get("range") for request in hub.file_requests if FIRST in request.path]
    assert ranges == [None, "bytes=250000-", "bytes=250000-"]


def test_a_part_of_another_object_is_thrown_away(hub: FakeHub, model_dir: Path) -> None:
    hub.faults = [Fault("cut", 100_000, FIRST, 1), Fault("long", 1000, FIRST, 1)]
    outcome = download(model_dir, hub, **PATIENT, INTERNLM_SOURCE="huggingface")
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)
    ranges = [request.headers.get("range") for request in hub.file_requests if FIRST in request.path]
    assert ranges == [None, "bytes=100000-", None]


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_parts_of_another_revision_on_a_poor_link_are_overcome(hub: FakeHub, model_dir: Path, source: str) -> None:
    model_dir.mkdir()
    for name in SHARDS:
        (model_dir / (name + PARTIAL_SUFFIX)).write_bytes((hub.directory / name).read_bytes()[:120_000])
    make_repository(hub.directory, seed=77)
    hub.faults = [Fault("cut", 10_000, SECOND, 1)]
    outcome = download(model_dir, hub, **PATIENT, INTERNLM_SOURCE=source)
    assert outcome.code == 0, outcome.log
    assert_complete(model_dir, hub.directory)


@pytest.mark.parametrize(
    ("source", "path"), [("modelscope", LISTING), ("huggingface", LISTING), ("huggingface", FIRST)]
)
@pytest.mark.parametrize(("asked", "delay"), [("1", "1.0"), ("-5", "0.0"), ("nan", "0.0")])
def test_the_hub_says_when_to_come_back(
    hub: FakeHub, model_dir: Path, source: str, path: str, asked: str, delay: str
) -> None:
    hub.faults = [Fault("status", 429, path, 1, {"Retry-After": asked})]
    outcome = download(model_dir, hub, **PATIENT, INTERNLM_SOURCE=source)
    assert outcome.code == 0, outcome.log
    assert f"trying again in {delay} s" in outcome.log


def copies(case: Case) -> list[Fault]:
    """Faults count what they did, and the table is used for every source."""
    return [Fault(f.kind, f.argument, f.path, f.times, f.headers) for f in case.faults]
