"""Why a delivery fails: a cause, one line that says what happened, and what the operator can do about it.

A cause also decides how often it is worth trying again: `attempts` None means until the budget is spent.
"""

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """What went wrong, as a stable name for logs and tests."""

    NO_SPACE = "no-space"
    READ_ONLY = "read-only"
    NOT_PERMITTED = "not-permitted"
    DISK = "disk-error"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    PROXY = "proxy"
    TLS = "tls"
    DNS = "dns"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    THROTTLED = "throttled"
    HUB_ERROR = "hub-error"
    BAD_ANSWER = "bad-answer"
    BAD_LISTING = "bad-listing"
    INTEGRITY = "integrity"
    MOVED = "moved"
    DIGEST = "digest"
    INCOMPLETE = "incomplete"
    DAMAGED = "damaged"
    LOCKED = "locked"
    CLIENT = "client-crashed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Treatment:
    """What helps against a cause, and how many attempts it is worth (None: as many as the budget allows)."""

    remedy: str
    attempts: int | None = 1


TREATMENTS: dict[Cause, Treatment] = {
    Cause.NO_SPACE: Treatment("grow the volume or free space on it; the next start resumes"),
    Cause.READ_ONLY: Treatment("mount the volume writable for the download, or use INTERNLM_SOURCE=dir"),
    Cause.NOT_PERMITTED: Treatment("let this user write there (fsGroup, or the owner of the volume)"),
    Cause.DISK: Treatment("look at the node's and the storage's logs", 3),
    Cause.UNAUTHORIZED: Treatment(
        "set INTERNLM_HUB_TOKEN_FILE (in the chart: model.tokenSecret) to a file with a valid access token"
    ),
    Cause.FORBIDDEN: Treatment("give the token's account access to the repository, or accept its terms on the hub"),
    Cause.NOT_FOUND: Treatment("check INTERNLM_MODEL_REPO, INTERNLM_REVISION and INTERNLM_HUB_ENDPOINT", 2),
    Cause.PROXY: Treatment("check HTTPS_PROXY and HTTP_PROXY, or list the hub in NO_PROXY", None),
    Cause.TLS: Treatment("check INTERNLM_HUB_ENDPOINT; for a private CA set REQUESTS_CA_BUNDLE to its certificates"),
    Cause.DNS: Treatment("check the cluster's DNS, the egress NetworkPolicy and INTERNLM_HUB_ENDPOINT", None),
    Cause.UNREACHABLE: Treatment("check the egress NetworkPolicy, HTTPS_PROXY and INTERNLM_HUB_ENDPOINT", None),
    Cause.TIMEOUT: Treatment("check the network; INTERNLM_DOWNLOAD_STALL_TIMEOUT says how long to wait", None),
    Cause.STALLED: Treatment("check the network and the storage; the next start resumes", None),
    Cause.THROTTLED: Treatment("wait, or use a token with a higher limit or a mirror (INTERNLM_HUB_ENDPOINT)", None),
    Cause.HUB_ERROR: Treatment("the hub is in trouble: wait, or use a mirror (INTERNLM_HUB_ENDPOINT)", None),
    Cause.BAD_ANSWER: Treatment("check INTERNLM_HUB_ENDPOINT and HTTPS_PROXY: what answers is not a model hub", 3),
    Cause.BAD_LISTING: Treatment("nothing was fetched; check INTERNLM_MODEL_REPO and INTERNLM_HUB_ENDPOINT"),
    Cause.INTEGRITY: Treatment("the hub or something on the way changes files; try another INTERNLM_HUB_ENDPOINT", 2),
    Cause.MOVED: Treatment("pin INTERNLM_REVISION to a tag or a commit", 5),
    Cause.DIGEST: Treatment(
        "bring the revision that the digest was taken from (INTERNLM_REVISION), or correct INTERNLM_MODEL_DIGEST"
    ),
    Cause.INCOMPLETE: Treatment("copy what is missing there, or set INTERNLM_SOURCE to a hub"),
    Cause.DAMAGED: Treatment("copy that file again, or set INTERNLM_SOURCE to a hub"),
    Cause.LOCKED: Treatment("look at the pod that holds the lock; deleting it frees the lock"),
    Cause.CLIENT: Treatment("see the lines above; the next start resumes", 3),
    Cause.STOPPED: Treatment("what has arrived is kept; the next start resumes"),
}


class DeliveryFailed(Exception):
    """The model could not be brought or is not what it should be. `str()` is the whole line for the operator."""

    def __init__(self, cause: Cause, what: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{cause.value}: {what}; {TREATMENTS[cause].remedy}")
        self.cause = cause
        self.what = what
        self.retry_after = retry_after
        self.attempts = TREATMENTS[cause].attempts
        """How many attempts this is worth; None: as many as the budget allows."""
