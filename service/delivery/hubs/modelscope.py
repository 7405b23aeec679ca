"""ModelScope as a source, through its own client; a child process (`python -m service.delivery.hubs.modelscope`).

The parent has listed, judged and measured before; the client is only given files it may fetch, with size and hash.
"""

import os
from typing import Any

from service.delivery.hubs.catalog import MAX_ENTRIES
from service.delivery.hubs.worker import CLIENT_SCRATCH, Hub, Listing, Request, main

A_WEEK_SECONDS = 7 * 24 * 3600


def client_environment(request: Request) -> dict[str, str]:
    """The client reads these once, at import, so they are set before it and only here."""
    idle = str(max(1, round(request.stall_timeout)))
    return {
        # Its home and cache would be under $HOME, which a pod with a read-only root does not have.
        "MODELSCOPE_CACHE": f"{request.scratch}/{CLIENT_SCRATCH}",
        "MODELSCOPE_HOME": f"{request.scratch}/{CLIENT_SCRATCH}",
        # One lock on the volume is held already; the client's own wait 600 s and lie where other pods do not see them.
        "MODELSCOPE_DOWNLOAD_FILE_LOCK": "false",
        # The default of an hour per file fails 10 GB below 2.8 MB/s. The stall watchdog is the limit that makes sense.
        "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(A_WEEK_SECONDS),
        "MODELSCOPE_DOWNLOAD_TIMEOUT": idle,
        "MODELSCOPE_DOWNLOAD_LOW_SPEED_WINDOW_SECONDS": idle,
        "MODELSCOPE_API_TIMEOUT": idle,
        "MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS": idle,
        # Retries with back-off, jitter, a budget and a line in the log are the parent's.
        "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1",
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
        # A listing cut short at 3,000 entries would be walked folder by folder; no model has that many.
        "MODELSCOPE_REPO_TREE_MAX_REQUESTS": "1",
        # Parts would need twice the file's room; files are fetched side by side instead.
        "MODELSCOPE_DOWNLOAD_PARALLEL_WORKERS": "1",
        # It would fetch whatever address the hub names and send the answer back to it in a header.
        "MODELSCOPE_DOWNLOAD_INTRA_CLOUD": "false",
        "MODELSCOPE_LOG_LEVEL": "40",
        "TQDM_DISABLE": "1",
    }


class ModelScope:
    """The client, pointed at one hub."""

    def __init__(self, request: Request) -> None:
        from modelscope_hub import HubApi

        self._api = HubApi(endpoint=request.endpoint, token=request.token)

    def list_files(self, request: Request) -> Listing:
        """One request; ModelScope names every file's SHA-256 and the commit that last touched it."""
        entries = self._api.legacy.list_repo_files(request.repo, "model", revision=request.revision)
        # Neither folders nor what git has besides files: links and submodules.
        files = [entry for entry in entries if entry.get("Type", "blob") == "blob"]
        newest: dict[str, Any] = max(files, key=lambda entry: _number(entry.get("CommittedDate")), default={})
        if len(entries) > MAX_ENTRIES:
            return Listing([{}] * len(entries), None)
        return Listing([_entry(file) for file in files], newest.get("Revision") or None)

    def fetch(self, request: Request) -> dict[str, BaseException]:
        """Files side by side, each resumed by Range from its `.incomplete`; hashed by the client where listed."""
        from modelscope_hub.errors import FileDownloadError

        listing = [{"Path": f["path"], "Size": f["size"], "Sha256": f["sha256"]} for f in request.files]
        try:
            self._api.download_repo(
                request.repo,
                "model",
                revision=request.revision,
                local_dir=request.directory,
                max_workers=request.workers,
                file_list=listing,
            )
        except FileDownloadError as error:
            return dict(error.failed_files)
        return {}


def _entry(file: dict[str, Any]) -> dict[str, Any]:
    return {
        "path": file.get("Path") or file.get("Name"),
        "size": file.get("Size"),
        "sha256": file.get("Sha256"),
        "version": file.get("Revision"),
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def connect(request: Request) -> Hub:
    """The client with its environment set; imports it."""
    os.environ.update(client_environment(request))
    return ModelScope(request)


if __name__ == "__main__":
    main(connect)
