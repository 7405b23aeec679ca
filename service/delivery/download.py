"""`internlm-chat download`: a complete, verified model directory, or one line that says why not and what helps.

Order: the manifest first (complete: no network, no lock, under a second), then the volume's lock, then attempts until
every file is verified and on the disk, then the manifest, last.
"""

import logging
import shutil
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path

from service import __version__
from service.delivery import manifest as manifests
from service.delivery.attempt import Attempt
from service.delivery.disk import usage, volume
from service.delivery.disk.directory import check_consistent, examine
from service.delivery.disk.inspection import Damage, inspect
from service.delivery.disk.journal import Journal
from service.delivery.disk.lock import signs_of_life, volume_lock
from service.delivery.failures import TREATMENTS, Cause, DeliveryFailed
from service.delivery.hubs.worker import CLIENT_SCRATCH
from service.delivery.manifest import FileRecord, Manifest
from service.delivery.reporting.progress import VERIFYING, Progress
from service.delivery.reporting.termination import leave_message
from service.delivery.reporting.transfer_progress import show_transfer
from service.delivery.retry import keep_trying
from service.delivery.signals import Stopped, stopping
from service.delivery.sources import hub_client
from service.delivery.symptoms import failure_of
from service.download_settings import DownloadSettings
from service.environment import load_download_settings
from service.errors import ConfigurationError
from service.log import configure

log = logging.getLogger(__name__)

OK, FAILED = 0, 1


def run(verify: bool = False) -> int:
    """Bring the model of this process's environment; with `verify`, hash every file even if nothing seems changed.

    Returns the exit code: 0 complete, 1 failed, 128 + signal when told to stop. Raises ConfigurationError for an
    environment that cannot be read.
    """
    settings = load_download_settings()
    configure(settings.log_level, settings.log_format)
    code, message = _outcome(settings, verify)
    log.log(logging.INFO if code == OK else logging.ERROR, "%s", message)
    leave_message(settings.termination_log, message)
    return code


def _outcome(settings: DownloadSettings, verify: bool) -> tuple[int, str]:
    try:
        with stopping(), show_transfer(settings.download_metrics_file) as progress:
            manifest = Delivery(settings, progress).deliver(verify)
    except ConfigurationError as error:
        return FAILED, error.message
    except (DeliveryFailed, OSError) as error:
        return FAILED, f"download failed: {failure_of(error, 'the volume')}"
    except Stopped as stop:
        return stop.exit_code, f"{Cause.STOPPED.value}: {stop}; {TREATMENTS[Cause.STOPPED].remedy}"
    return OK, (
        f"complete: {manifest.repo or 'model'} {manifest.commit or manifest.revision} in {settings.model_dir}, "
        f"{len(manifest.files)} files, {manifest.total_bytes:,} bytes, digest {manifest.digest}"
    )


class Delivery:
    """One run: from whatever lies in the directory to a complete model."""

    def __init__(self, settings: DownloadSettings, progress: Progress) -> None:
        if settings.model_dir is None:
            raise ConfigurationError("INTERNLM_MODEL_DIR is not set: say where the model is to be brought")
        self._settings = settings
        self._dir = settings.model_dir.expanduser()
        self._progress = progress
        self._has_lock = False

    def deliver(self, verify: bool) -> Manifest:
        """The manifest of the complete directory. Raises DeliveryFailed, ConfigurationError, OSError, Stopped."""
        if self._settings.source == "dir":
            return self._verified(verify) or self._adopt()
        if manifest := self._intact(verify):
            return manifest
        scratch = volume.prepare(self._dir)
        settings = self._settings
        with volume_lock(scratch, settings.download_budget, lambda: volume.bytes_in(self._dir)) as lock:
            self._has_lock, self._progress = True, signs_of_life(lock, self._progress)
            # Another pod may have completed or mended it while this one waited.
            return self._intact(verify) or self._fetch(scratch, lock)

    def _intact(self, verify: bool) -> Manifest | None:
        """The manifest, if it is of the wanted model and all it lists is there; says in the log why not."""
        settings, manifest = self._settings, manifests.read(self._dir)
        if manifest is None:
            return None
        if not manifest.is_of(settings.source, settings.repo, settings.wanted_revision):
            log.info("%s holds %s %s; another model is wanted", self._dir, manifest.repo, manifest.revision)
            return None
        if settings.model_digest not in (None, manifest.digest):
            log.warning("%s holds a model with digest %s; another is wanted", self._dir, manifest.digest)
            return None
        damages, manifest = self._inspect(manifest, verify)
        for damage in damages:
            log.warning("%s %s; it is fetched again", self._dir, damage)
        if damages:
            return None
        if flaw := self._flaw():
            log.warning("%s is complete and no whole model: %s; the hub is asked again", self._dir, flaw)
            return None
        return manifest

    def _flaw(self) -> str | None:
        """What keeps the directory's files from being a model, if something does."""
        try:
            check_consistent(self._dir, [path.name for path in self._dir.iterdir()])
        except DeliveryFailed as failure:
            return failure.what
        return None

    def _inspect(self, manifest: Manifest, thorough: bool) -> tuple[tuple[Damage, ...], Manifest]:
        """What is damaged, and the manifest with the modification times that the files have now."""
        inspection = inspect(
            self._dir,
            manifest,
            thorough=thorough,
            on_bytes=lambda done: self._progress(VERIFYING, done, manifest.total_bytes) if thorough else None,
        )
        if inspection.sound and inspection.mtimes:
            former, manifest = manifest, manifest.with_times(inspection.mtimes)
            self._replace(former, manifest)
        return inspection.damages, manifest

    def _verified(self, verify: bool) -> Manifest | None:
        """The manifest of a directory that nobody can mend; raises DeliveryFailed if it needed mending."""
        manifest = manifests.read(self._dir)
        if manifest is None:
            return None
        damages, manifest = self._inspect(manifest, verify)
        if damages:
            raise DeliveryFailed(Cause.DAMAGED, f"in {self._dir} {'; '.join(map(str, damages))}")
        self._check_digest(manifest)
        return manifest

    def _adopt(self) -> Manifest:
        """Take what lies in the directory for the model, if it is whole."""
        log.info("%s has no manifest; its files are examined", self._dir)
        manifest = _manifest("dir", "", "", None, examine(self._dir, self._progress))
        self._check_digest(manifest)
        self._replace(None, manifest)
        return manifest

    def _fetch(self, scratch: Path, lock: int) -> Manifest:
        settings, journal = self._settings, Journal(scratch)
        with hub_client(settings, self._dir, scratch, lock) as client:
            attempt = Attempt(client, settings, self._dir, journal, self._progress)
            catalog, records = keep_trying(
                attempt.run,
                lambda: attempt.high_water,
                budget=settings.download_budget,
                first_delay=settings.download_retry_delay,
            )
        files = tuple(records[file.path] for file in catalog.files)
        manifest = _manifest(settings.source, settings.repo, settings.wanted_revision, catalog.commit, files)
        if manifest.unlisted:
            log.warning("the hub lists no hash for %s; what arrived was hashed", ", ".join(manifest.unlisted))
        self._check_digest(manifest)
        self._check_whole(manifest)
        usage.offer(scratch)
        manifest.write(self._dir)
        journal.remove()
        shutil.rmtree(scratch / CLIENT_SCRATCH, ignore_errors=True)
        return manifest

    def _check_digest(self, manifest: Manifest) -> None:
        wanted = self._settings.model_digest
        if wanted and manifest.digest != wanted:
            raise DeliveryFailed(Cause.DIGEST, f"the model's digest is {manifest.digest}, not {wanted}")

    def _check_whole(self, manifest: Manifest) -> None:
        if flaw := self._flaw():
            raise ConfigurationError(
                f"{manifest.repo} {manifest.commit or manifest.revision} is no whole model, though all of it came: "
                f"{flaw}; set INTERNLM_MODEL_REPO or INTERNLM_REVISION to one that is"
            )

    def _replace(self, former: Manifest | None, manifest: Manifest) -> None:
        """Write the manifest of what was inspected under `former`, unless a download has put another there meanwhile or
        is about to."""
        try:
            with self._alone():
                if manifests.read(self._dir) == former:
                    manifest.write(self._dir)
        except (OSError, DeliveryFailed) as error:
            log.warning("%s: the manifest cannot be written (%s); each start hashes anew", self._dir, error)

    def _alone(self) -> AbstractContextManager[object]:
        """The volume's lock, unless this run has it or no download has ever made one."""
        if self._has_lock or not (self._dir / volume.SCRATCH).is_dir():
            return nullcontext()
        return volume_lock(volume.prepare(self._dir), patience=0.0, progress=lambda: 0)


def _manifest(source: str, repo: str, revision: str, commit: str | None, files: tuple[FileRecord, ...]) -> Manifest:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(source, repo, revision, commit, time, f"internlm-chat {__version__}", files)
