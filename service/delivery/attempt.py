"""One attempt to complete a model directory: list, plan, measure, fetch, verify. Any attempt may be the last.

Whatever an attempt achieved is on the disk and in the journal, so the next one only does what is left.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.disk import neighbours, room, volume
from service.delivery.disk.durable import sync
from service.delivery.disk.hashing import Digests, hash_files
from service.delivery.disk.journal import Journal
from service.delivery.failures import Cause, DeliveryFailed
from service.delivery.hubs.catalog import Catalog, RemoteFile
from service.delivery.hubs.client import HubClient
from service.delivery.manifest import FileRecord
from service.delivery.reporting.progress import DOWNLOADING, VERIFYING, Progress
from service.delivery.sources import HUBS, fetch_revision
from service.delivery.symptoms import failure_of
from service.download_settings import DownloadSettings

log = logging.getLogger(__name__)


class Attempt:
    """The state the attempts of one run share."""

    def __init__(
        self, client: HubClient, settings: DownloadSettings, model_dir: Path, journal: Journal, progress: Progress
    ) -> None:
        self._client = client
        self._source = settings.source
        self._revision = settings.wanted_revision
        self._dir = model_dir
        self._makes_room = settings.download_make_room
        self._keep = settings.download_keep
        self._journal = journal
        self._progress = progress
        self._resumable = False
        self.high_water = 0

    def run(self) -> tuple[Catalog, dict[str, FileRecord]]:
        """Every wanted file, verified and on the disk, as one listing has it; raises DeliveryFailed."""
        try:
            return self._run()
        except OSError as error:
            raise failure_of(error, f"writing to {self._dir}") from error

    def _run(self) -> tuple[Catalog, dict[str, FileRecord]]:
        catalog = self._client.list_files()
        volume.check_no_links(self._dir, catalog.files)
        self._make_way(catalog)
        whole = self._whole(catalog)
        absent = [file for file in catalog.files if file not in whole]
        verified = self._reclaim([*whole, *neighbours.link(self._dir, absent)])
        missing = [file for file in catalog.files if file.path not in verified]
        if missing:
            verified |= self._fetch(catalog, missing)
            self._check_unmoved(catalog)
        return catalog, verified

    def _check_unmoved(self, catalog: Catalog) -> None:
        """Files asked for by branch could come from two commits; asked for by commit, they cannot."""
        if not HUBS[self._source].by_commit and self._client.list_files().files != catalog.files:
            raise DeliveryFailed(Cause.MOVED, "the revision changed while it was being fetched")

    def _make_way(self, catalog: Catalog) -> None:
        """From here on files change: the old manifest goes first, then what the new listing has no use for."""
        former = manifests.read(self._dir)
        manifests.discard(self._dir)
        volume.prune(self._dir, catalog, [file.path for file in former.files] if former else [])
        if not self._resumable:
            # Nothing can prove that bytes of an earlier run belong to this file: not its hash, for there is none.
            for file in catalog.files:
                if not file.checkable:
                    volume.partial(self._dir, file).unlink(missing_ok=True)
        self._resumable = True

    def _whole(self, catalog: Catalog) -> list[RemoteFile]:
        """Files that are there in full; others that bear a final name are removed."""
        whole = []
        for file in catalog.files:
            path = self._dir / file.path
            if path.exists() and path.stat().st_size == file.size:
                whole.append(file)
            else:
                path.unlink(missing_ok=True)
        return whole

    def _fetch(self, catalog: Catalog, missing: list[RemoteFile]) -> dict[str, FileRecord]:
        self._find_room(volume.bytes_needed(self._dir, missing))
        done = catalog.total_bytes - sum(file.size for file in missing)
        revision = fetch_revision(self._source, self._revision, catalog)
        try:
            failures = self._client.fetch(
                missing,
                revision,
                lambda: volume.bytes_here(self._dir, missing),
                lambda here: self._report(catalog, done + here),
            )
        finally:
            self._report(catalog, done + volume.bytes_here(self._dir, missing))
        arrived = [file for file in missing if file.path not in failures and (self._dir / file.path).exists()]
        verified = self._verify(arrived)
        if failures:
            raise worst(failures)
        if absent := [file.path for file in missing if file.path not in verified]:
            raise DeliveryFailed(Cause.CLIENT, f"the hub client reported success without {', '.join(absent)}")
        return verified

    def _find_room(self, needed: int) -> None:
        if self._makes_room:
            room.make_room(self._dir, needed, self._keep)
        volume.check_space(self._dir, needed, neighbours.described(self._dir))

    def _report(self, catalog: Catalog, here: int) -> None:
        self.high_water = max(self.high_water, here)
        self._progress(DOWNLOADING, here, catalog.total_bytes)

    def _reclaim(self, files: list[RemoteFile]) -> dict[str, FileRecord]:
        """The records of files of an earlier run that are provably right; the others are removed."""
        records = self._known(files)
        unknown = [file for file in files if file.path not in records]
        for file in unknown:
            if not file.checkable:
                (self._dir / file.path).unlink()
        right, _ = self._hash([file for file in unknown if file.checkable])
        return records | right

    def _verify(self, files: list[RemoteFile]) -> dict[str, FileRecord]:
        """The records of files that have just arrived; raises DeliveryFailed if the bytes of one are wrong."""
        records = self._known(files)
        right, wrong = self._hash([file for file in files if file.path not in records])
        if wrong:
            raise DeliveryFailed(Cause.INTEGRITY, f"other bytes came than the hub lists for {', '.join(wrong)}")
        return records | right

    def _known(self, files: list[RemoteFile]) -> dict[str, FileRecord]:
        return {file.path: record for file in files if (record := self._journal.verified(self._dir, file))}

    def _hash(self, files: list[RemoteFile]) -> tuple[dict[str, FileRecord], list[str]]:
        """Records of the files that are right, names of those that are wrong, which are removed."""
        total = sum(file.size for file in files)
        paths = {self._dir / file.path: file.git_oid is not None for file in files}
        found = hash_files(paths, lambda done: self._progress(VERIFYING, done, total))
        right, wrong = {}, []
        for file in files:
            digests = found[self._dir / file.path]
            if isinstance(digests, OSError):
                raise failure_of(digests, f"reading {file.path}") from digests
            if _is_right(digests, file):
                right[file.path] = self._accept(file, digests)
            else:
                log.warning("%s does not have the bytes the hub lists; it is removed", file.path)
                (self._dir / file.path).unlink()
                wrong.append(file.path)
        return right, wrong

    def _accept(self, file: RemoteFile, digests: Digests) -> FileRecord:
        path = self._dir / file.path
        volume.partial(self._dir, file).unlink(missing_ok=True)
        sync(path)
        sync(self._dir)
        record = FileRecord(file.path, file.size, digests.sha256, path.stat().st_mtime_ns, file.checkable)
        self._journal.add(file, record)
        return record


def worst(failures: Mapping[str, DeliveryFailed]) -> DeliveryFailed:
    """The failure that decides what happens next: the one that is worth the fewest further attempts."""
    failure = min(failures.values(), key=lambda failure: failure.attempts or 1_000)
    if len(failures) > 1:
        log.warning("%d files could not be fetched: %s", len(failures), ", ".join(sorted(failures)))
    return failure


def _is_right(found: Digests, file: RemoteFile) -> bool:
    if file.sha256:
        return found.sha256 == file.sha256
    return found.git_oid == file.git_oid if file.git_oid else True
