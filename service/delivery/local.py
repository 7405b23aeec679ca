"""Which model directory this server loads, and what is known of it before a byte of weights is read."""

from dataclasses import dataclass
from pathlib import Path

from service.delivery.check import before_loading
from service.delivery.disk import usage
from service.delivery.manifest import Manifest
from service.delivery.reporting.progress import Progress
from service.delivery.small_model.smollm2 import ensure_small_model
from service.errors import ConfigurationError
from service.settings import Settings

SMALL_MODEL_ID = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class LocalModel:
    """A directory to load, the name under which its model is served, and its manifest if a download left one."""

    directory: Path
    id: str
    manifest: Manifest | None = None


def has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU to this process. Looks at device files: costs nothing, needs no driver."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def find_model(settings: Settings, progress: Progress) -> LocalModel:
    """The configured model, or on a machine without a GPU the small real one (fetched once).

    Raises ConfigurationError, naming the setting that would mend it, when there is nothing that can be loaded.
    """
    if settings.model_dir is not None:
        return _configured(settings, settings.model_dir.expanduser(), progress)
    if settings.device == "cuda" or (settings.device == "auto" and has_gpu()):
        raise ConfigurationError(
            "INTERNLM_MODEL_DIR is not set: it names the directory of the model to serve. `internlm-chat download` "
            "brings one; INTERNLM_DEVICE=cpu tries the small model instead.",
            field="INTERNLM_MODEL_DIR",
        )
    return LocalModel(ensure_small_model(settings.cache, progress), settings.model_id or SMALL_MODEL_ID)


def _configured(settings: Settings, directory: Path, progress: Progress) -> LocalModel:
    # The fake engine reads a tokenizer and no weights, so there is nothing to check for it.
    usage.hold(directory)
    manifest = None if settings.engine == "fake" else before_loading(settings, directory, progress)
    served_as = settings.model_id or (manifest.repo if manifest else "") or directory.name
    return LocalModel(directory, served_as, manifest)
