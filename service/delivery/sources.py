"""Where a model can come from, by the value of `INTERNLM_SOURCE`."""

import os
from dataclasses import dataclass
from pathlib import Path

from service.delivery.hubs.catalog import Catalog
from service.delivery.hubs.client import HubClient
from service.delivery.hubs.worker import Request
from service.download_settings import DownloadSettings
from service.errors import ConfigurationError


@dataclass(frozen=True)
class HubKind:
    """A kind of hub: the child's program, whether files can be asked for by commit, the public hub's address and the
    variables that name another to the hub's own tools."""

    module: str
    by_commit: bool
    public: str
    variables: tuple[str, ...]


HUBS: dict[str, HubKind] = {
    # ModelScope names a file's last commit, not the tree's, so files are asked for by the revision and the listing
    # is compared again at the end.
    "modelscope": HubKind(
        "service.delivery.hubs.modelscope",
        by_commit=False,
        public="https://modelscope.cn",
        variables=("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"),
    ),
    "huggingface": HubKind(
        "service.delivery.hubs.huggingface", by_commit=True, public="https://huggingface.co", variables=("HF_ENDPOINT",)
    ),
}


def endpoint(settings: DownloadSettings) -> str:
    """Where the hub is asked: at the address that is set, or else where its own tools would ask, without a slash."""
    hub = HUBS[settings.source]
    named = next(filter(None, (os.environ.get(name, "").strip() for name in hub.variables)), hub.public)
    address = settings.hub_endpoint or named
    return (address if "://" in address else f"https://{address}").rstrip("/")


def hub_client(settings: DownloadSettings, model_dir: Path, scratch: Path, lock: int) -> HubClient:
    """The client for the repository of the settings; raises ConfigurationError if the token cannot be read."""
    request = Request(
        operation="list",
        repo=settings.repo,
        revision=settings.wanted_revision,
        endpoint=endpoint(settings),
        token=read_token(settings.hub_token_file),
        directory=str(model_dir),
        scratch=str(scratch),
        workers=settings.download_workers,
        stall_timeout=settings.download_stall_timeout,
        files=[],
    )
    return HubClient(HUBS[settings.source].module, request, lock)


def fetch_revision(source: str, revision: str, catalog: Catalog) -> str:
    """What to ask files by, so that they are those of `catalog` even if the branch moves on (where the hub can)."""
    return catalog.commit if HUBS[source].by_commit and catalog.commit else revision


def read_token(path: Path | None) -> str | None:
    """The access token in a file (a mounted secret); read anew at every start, so that it can be rotated."""
    if path is None:
        return None
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"INTERNLM_HUB_TOKEN_FILE={path}: {error}") from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(f"INTERNLM_HUB_TOKEN_FILE={path}: the file does not hold one token")
    return token
