"""Is the hub reachable from here? One request, through the operator's proxies."""

import http.client
import os
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.delivery.checks.finding import Finding, fail, ok, skip
from service.delivery.failures import TREATMENTS, Cause
from service.delivery.sources import endpoint
from service.delivery.symptoms import failure_of, without_users
from service.download_settings import DownloadSettings

PATIENCE_SECONDS = 10.0


def check_hub(settings: DownloadSettings, complete: bool) -> Finding:
    """An answer of any status means that it can be reached; nothing is asked when nothing is needed."""
    if settings.source == "dir":
        return skip("hub", "INTERNLM_SOURCE=dir")
    if complete:
        return skip("hub", "not needed: the model is complete")
    address = without_users(endpoint(settings))
    try:
        request = _request(endpoint(settings))
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=_trust()) as answer:  # noqa: S310
            return ok("hub", f"{address} answers {answer.status}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 407:
            return fail("hub", f"{address}: the proxy wants a password", TREATMENTS[Cause.PROXY].remedy)
        return ok("hub", f"{address} answers {error.code}")
    except (OSError, http.client.HTTPException, ValueError) as error:  # a ValueError: it is no address at all
        failure = failure_of(error, address)
        return fail("hub", failure.what, TREATMENTS[failure.cause].remedy, "INTERNLM_HUB_ENDPOINT")


def _request(address: str) -> urllib.request.Request:
    """The user that an address names goes into a header: urllib would take him for a part of the host's name."""
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl())  # noqa: S310
    if user:
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    return request


def _trust() -> ssl.SSLContext:
    """The download's HTTP client takes a private CA from REQUESTS_CA_BUNDLE, a file or a folder, so this must, too."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle and Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)
