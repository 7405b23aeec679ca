"""How often it is worth asking again, where the cause alone does not say."""

import pytest

from service.delivery.failures import Cause
from service.delivery.hubs.verdict import ATTEMPTS, judge
from service.delivery.symptoms import Symptom

TUNNEL = "HTTPSConnectionPool: Max retries exceeded (Caused by ProxyError('Tunnel connection failed: {status}'))"


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_has_let_us_in_is_asked_again(status: int) -> None:
    assert judge(Symptom("denied", status=status), "listing", let_in=False).attempts == 1
    assert judge(Symptom("denied", status=status), "listing", let_in=True).attempts == ATTEMPTS


@pytest.mark.parametrize(
    ("symptom", "attempts"),
    [
        (Symptom("connection refused", ["ProxyError"]), None),
        (Symptom(TUNNEL.format(status="503 Service Unavailable"), ["ProxyError"]), None),
        (Symptom(TUNNEL.format(status="403 Forbidden"), ["ProxyError"]), ATTEMPTS),
        (Symptom(TUNNEL.format(status="407 Proxy Authentication Required"), ["ProxyError"]), ATTEMPTS),
        (Symptom("proxy authentication required", status=407), ATTEMPTS),
    ],
    ids=["it is not there", "it has no way on", "it forbids", "a tunnel needs a password", "it needs a password"],
)
@pytest.mark.parametrize("let_in", [False, True])
def test_a_proxy_that_is_not_there_is_waited_for_and_one_that_refuses_is_not(
    symptom: Symptom, attempts: int | None, let_in: bool
) -> None:
    failure = judge(symptom, "listing", let_in=let_in)
    assert failure.cause is Cause.PROXY
    assert failure.attempts == attempts


def test_what_else_fails_is_worth_what_its_cause_is() -> None:
    assert judge(Symptom("gone", status=404), "listing", let_in=True).attempts == 2
    assert judge(Symptom("no space", errno=28), "fetching", let_in=True).attempts == 1
