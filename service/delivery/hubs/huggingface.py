"""Hugging Face, or a mirror of it, as a source; a child process (`python -m service.delivery.hubs.huggingface`).

Plain HTTPS with the HTTP client that ModelScope's brings along: listing, Range, resume. The hub's own library would
add nine packages to the downloader's image, a compiled transfer protocol that mirrors do not speak among them.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from service.delivery.hubs.catalog import MAX_ENTRIES, PARTIAL_SUFFIX
from service.delivery.hubs.worker import Hub, Listing, ListingTooLong, Request, main

CONNECT_SECONDS = 10
BLOCK_BYTES = 1 << 20
MAX_PAGES = 50
RANGE_NOT_SATISFIABLE = 416


class FileIntegrityError(Exception):
    """The hub sent a file of another size than it lists."""


class HuggingFace:
    """One repository; the revision is resolved to a commit once and everything is asked of that commit."""

    def __init__(self, request: Request) -> None:
        self._base = request.endpoint
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "internlm-chat"}
        if request.token:
            self._headers["Authorization"] = f"Bearer {request.token}"
        self._timeout = (CONNECT_SECONDS, request.stall_timeout)

    def list_files(self, request: Request) -> Listing:
        """The commit, then its tree page by page; large files have a SHA-256 there, small ones their git blob id."""
        revision = quote(request.revision, safe="")
        commit = quote(self._json(f"{self._base}/api/models/{request.repo}/revision/{revision}")[0]["sha"], safe="")
        entries: list[dict[str, Any]] = []
        page: str | None = f"{self._base}/api/models/{request.repo}/tree/{commit}?recursive=true"
        for _ in range(MAX_PAGES):
            if page is None or len(entries) > MAX_ENTRIES:
                break
            body, page = self._json(page)
            entries += [_entry(item) for item in body if item["type"] == "file"]
        if page is not None or len(entries) > MAX_ENTRIES:
            raise ListingTooLong
        return Listing(entries, commit)

    def fetch(self, request: Request) -> dict[str, BaseException]:
        """Files side by side, each resumed by Range. Hashes are the parent's to compare."""
        with ThreadPoolExecutor(request.workers) as pool:
            futures = {file["path"]: pool.submit(self._fetch, request, file) for file in request.files}
        return {path: error for path, future in futures.items() if (error := future.exception())}

    def _json(self, url: str) -> tuple[Any, str | None]:
        with requests.get(url, headers=self._headers, timeout=self._timeout) as response:
            _raise_for_status(response)
            following = response.links.get("next", {}).get("url")
            if following and not following.startswith(f"{self._base}/"):
                raise ValueError("the listing goes on at another host, which must not see the token")
            return response.json(), following

    def _fetch(self, request: Request, file: dict[str, Any]) -> None:
        target = Path(request.directory, file["path"])
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        here = partial.stat().st_size if partial.exists() else 0
        if here > file["size"]:
            partial.unlink()
            here = 0
        if here < file["size"] or not partial.exists():
            self._append(request, file, partial, here)
        partial.replace(target)

    def _append(self, request: Request, file: dict[str, Any], partial: Path, here: int) -> None:
        url = f"{self._base}/{request.repo}/resolve/{quote(request.revision, safe='')}/{quote(file['path'])}"
        headers = self._headers | ({"Range": f"bytes={here}-"} if here else {})
        with requests.get(url, headers=headers, timeout=self._timeout, stream=True) as response:
            if response.status_code == RANGE_NOT_SATISFIABLE:
                partial.unlink()
            _raise_for_status(response)
            resumed = response.status_code == 206 and _starts_at(response, here)
            size = here if resumed else 0
            announced = response.headers.get("Content-Length")
            if announced not in (None, str(file["size"] - size)):
                if resumed:  # the rest of another object; a whole answer may be a web page, and says nothing of it
                    partial.unlink()
                raise FileIntegrityError(f"{size} + {announced} bytes are announced, {file['size']} are listed")
            with partial.open("ab" if resumed else "wb") as out:
                # Not iter_content: it waits for whole blocks, and a cut would cost the last one each time.
                while size < file["size"] and (block := response.raw.read1(min(BLOCK_BYTES, file["size"] - size))):
                    size += len(block)
                    out.write(block)
        if size < file["size"]:
            # Where no length is announced the end of the connection is that of the file, and a cut looks the same.
            raise ConnectionError(f"the answer ended after {size} of {file['size']} bytes")


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    large = item.get("lfs") or {}
    return {
        "path": item["path"],
        "size": large.get("size", item.get("size")),
        "sha256": large.get("oid"),
        "git_oid": None if large else item.get("oid"),
    }


def _raise_for_status(response: requests.Response) -> None:
    """As requests does it; the error has the seconds after which the hub wants to be asked again, if it names any."""
    try:
        response.raise_for_status()
    except requests.HTTPError as error:
        with contextlib.suppress(InvalidHeader, ValueError, OverflowError):
            asked = Retry().parse_retry_after(response.headers.get("Retry-After", ""))
            error.retry_after = asked  # type: ignore[attr-defined]
        raise


def _starts_at(response: requests.Response, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def connect(request: Request) -> Hub:
    """The source; nothing is asked of the hub yet."""
    return HuggingFace(request)


if __name__ == "__main__":
    main(connect)
