"""Checks of the model directory: is it there, whole and known?"""

from pathlib import Path

from service.delivery import manifest as manifests
from service.delivery.checks.finding import Finding, fail, ok, skip, warn
from service.delivery.disk import volume
from service.delivery.disk.directory import check_consistent
from service.delivery.disk.inspection import Damage, survey
from service.delivery.failures import DeliveryFailed
from service.delivery.manifest import Manifest
from service.delivery.reporting.progress import VERIFYING, Progress
from service.delivery.symptoms import failure_of
from service.download_settings import DownloadSettings, Source
from service.engine.config import read_config
from service.errors import ConfigurationError, UnknownModel

INTERNLM3_BYTES = 17_700_000_000
"""InternLM3-8B-Instruct in bfloat16 with tokenizer; the exact figure comes with the hub's listing."""

SETTING = "INTERNLM_MODEL_DIR"
ELSEWHERE = "or set INTERNLM_MODEL_DIR to a directory that holds the model"
DOWNLOAD = f"run `internlm-chat download`, {ELSEWHERE}"
COPY = f"copy what is missing or damaged there again, {ELSEWHERE}"
ANOTHER = "serve another model (INTERNLM_MODEL_REPO, INTERNLM_MODEL_DIR): InternLM3, or a Llama of unquantized weights"
FINISH = "run `internlm-chat download` to its end; with INTERNLM_SOURCE=dir, if the files have been copied there since"
RECORD = "run `INTERNLM_SOURCE=dir internlm-chat download`: it hashes what is there, so that later damage is noticed"


def check_files(model_dir: Path, source: Source = "modelscope", progress: Progress | None = None) -> Finding:
    """Everything a server needs of the directory, and a model it knows; weights are hashed only where their time is not
    the manifest's, which `progress` is told of.

    `source` decides what helps: what a hub has can be fetched again, what somebody carried there cannot.
    """
    remedy = COPY if source == "dir" else DOWNLOAD
    try:
        return _judge_files(model_dir, source, remedy, progress)
    except UnknownModel as error:
        return fail("model files", error.message, ANOTHER, SETTING)
    except ConfigurationError as error:
        return fail("model files", error.message, remedy, SETTING)
    except (DeliveryFailed, OSError) as error:
        failure = failure_of(error, f"reading {model_dir}")
        return fail("model files", failure.what, remedy, SETTING)


def _judge_files(model_dir: Path, source: Source, remedy: str, progress: Progress | None) -> Finding:
    """Raises ConfigurationError, DeliveryFailed, OSError for what is not right at a closer look."""
    if not model_dir.is_dir():
        return fail("model files", f"there is no directory {model_dir}", remedy, SETTING)
    manifest = manifests.read(model_dir)
    if manifest and (damages := _damages(model_dir, manifest, progress)):
        return fail("model files", "; ".join(map(str, damages)), remedy, SETTING)
    if manifest is None and (model_dir / volume.SCRATCH).is_dir():
        # Files have their names before they are verified, and the manifest goes before the first of them changes.
        return fail("model files", f"a download to {model_dir} has not finished", FINISH, SETTING)
    # With a manifest, too: it says that all came that the hub has, not that the hub has all.
    check_consistent(model_dir, [path.name for path in model_dir.iterdir()])
    read_config(model_dir)
    if manifest is None:
        advice = RECORD if source == "dir" else DOWNLOAD
        return warn("model files", f"{model_dir} has no manifest, but seems whole", advice)
    return ok("model files", f"{len(manifest.files)} files, {manifest.total_bytes:,} bytes in {model_dir}")


def _damages(model_dir: Path, manifest: Manifest, progress: Progress | None) -> tuple[Damage, ...]:
    """Nothing is recorded here, so that what has to be hashed is hashed at every start."""
    seen = survey(model_dir, manifest, whole_seconds=True)
    if progress is None or not seen.takes_long:
        return seen.conclude().damages
    return seen.conclude(lambda done: progress(VERIFYING, done, seen.bytes_to_hash)).damages


def check_manifest(model_dir: Path, settings: DownloadSettings) -> Finding:
    """What the model is, and whether it is the one that is wanted."""
    try:
        manifest = manifests.read(model_dir)
    except OSError as error:
        return skip("manifest", failure_of(error, f"reading {model_dir}").what)
    if manifest is None:
        return skip("manifest", "none")
    name = f"{manifest.repo or manifest.source} {manifest.commit or manifest.revision}".strip()
    found = f"{name}, digest {manifest.digest}"
    if settings.model_digest not in (None, manifest.digest):
        return fail("manifest", found, "set INTERNLM_MODEL_DIGEST to this digest, or download what it names")
    if settings.source != "dir" and not manifest.is_of(settings.source, settings.repo, settings.wanted_revision):
        remedy = f"INTERNLM_MODEL_REPO={manifest.repo} keeps it; the next download replaces it"
        return warn("manifest", f"{found}; {settings.repo} {settings.wanted_revision} is wanted", remedy)
    if manifest.unlisted:
        return warn("manifest", f"{found}; hashed on arrival only", "set INTERNLM_MODEL_DIGEST to it, once trusted")
    return ok("manifest", found)


def check_disk(model_dir: Path, settings: DownloadSettings, complete: bool) -> Finding:
    """Free space, which matters as long as something is still to come."""
    try:
        existing = next((path for path in (model_dir, *model_dir.parents) if path.is_dir()), Path("/"))
        free = volume.free_bytes(existing)
    except OSError as error:
        return fail("free disk", f"{error.filename}: {error.strerror}", "mount the volume", SETTING)
    if complete:
        return ok("free disk", f"{free:,} bytes; nothing more is needed")
    here = volume.bytes_in(model_dir)
    if settings.model_repo or free + here >= INTERNLM3_BYTES:
        return ok("free disk", f"{free:,} bytes free, {here:,} of the model's there")
    missing = INTERNLM3_BYTES - free - here
    return warn("free disk", f"{free:,} bytes free: {missing:,} short of InternLM3-8B's", "grow the volume")
