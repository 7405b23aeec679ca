"""Is the hub reachable from here? One request, through the operator's proxies."""

import http.client
import os
import ssl
import urllib.error
import urllib.request

from service.delivery.checks.finding import Finding, fail, ok, skip
from service.delivery.failures import TREATMENTS, Cause
from service.delivery.sources import endpoint
from service.delivery.symptoms import failure_of
from service.download_settings import DownloadSettings

PATIENCE_SECONDS = 10.0


def check_hub(settings: DownloadSettings, complete: bool) -> Finding:
    """An answer of any status means that it can be reached; nothing is asked when nothing is needed."""
    if settings.source == "dir":
        return skip("hub", "INTERNLM_SOURCE=dir")
    if complete:
        return skip("hub", "not needed: the model is complete")
    address = endpoint(settings)
    try:
        # The download's HTTP client takes a private CA from REQUESTS_CA_BUNDLE, so this must, too.
        trust = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))
        with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS, context=trust) as answer:  # noqa: S310
            return ok("hub", f"{address} answers {answer.status}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 407:
            return fail("hub", f"{address}: the proxy wants a password", TREATMENTS[Cause.PROXY].remedy)
        return ok("hub", f"{address} answers {error.code}")
    except (OSError, http.client.HTTPException) as error:
        failure = failure_of(error, address)
        return fail("hub", failure.what, TREATMENTS[failure.cause].remedy, "INTERNLM_HUB_ENDPOINT")
