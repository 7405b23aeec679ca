"""What the failure of a question to a hub means, and how often asking again is worth it where the cause alone does not
say."""

import re

from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.symptoms import Symptom, diagnose

PROXY_AUTHENTICATION_REQUIRED = 407
ATTEMPTS = 5
"""Of what is most likely meant, and may pass all the same."""

_DENIALS = (Cause.UNAUTHORIZED, Cause.FORBIDDEN)
_REFUSED_TUNNEL = re.compile(r"Tunnel connection failed: 4\d\d")


def judge(symptom: Symptom, subject: str, *, let_in: bool) -> DeliveryFailed:
    """The failure behind a symptom; `let_in` says whether the hub has answered a question of this run.

    `subject` says what was being done, e.g. "fetching config.json".
    """
    failure = diagnose(symptom, subject)
    # ModelScope now and then denies what it has just allowed, and the signed address of a storage runs out.
    passing = let_in and failure.cause in _DENIALS
    if passing or (failure.cause is Cause.PROXY and _proxy_refuses(symptom)):
        failure.attempts = ATTEMPTS
    return failure


def _proxy_refuses(symptom: Symptom) -> bool:
    """Whether the proxy is there and wants nothing of it; one that is not there may be starting."""
    return symptom.status == PROXY_AUTHENTICATION_REQUIRED or bool(_REFUSED_TUNNEL.search(symptom.message))
