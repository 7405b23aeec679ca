"""Which model directory this server loads, and what is known of it before a byte of weights is read."""

import json
from dataclasses import dataclass
from pathlib import Path

from service.delivery.progress import Progress
from service.delivery.smollm2 import ensure_small_model
from service.errors import ConfigurationError
from service.settings import Settings

SMALL_MODEL_ID = "SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class LocalModel:
    """A directory to load, and the name under which its model is served."""

    directory: Path
    id: str


def has_gpu() -> bool:
    """Whether the kernel shows an NVIDIA GPU to this process. Looks at device files: costs nothing, needs no driver."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def find_model(settings: Settings, progress: Progress) -> LocalModel:
    """The configured model, or on a machine without a GPU the small real one (fetched once).

    Raises ConfigurationError when there is nothing that can be loaded.
    """
    if settings.model_dir is not None:
        return LocalModel(_checked(settings.model_dir.expanduser()), settings.model_id or settings.model_dir.name)
    if settings.device == "cuda" or (settings.device == "auto" and has_gpu()):
        raise ConfigurationError(
            "INTERNLM_MODEL_DIR is not set: it names the directory of the model to serve. `internlm-chat download` "
            "brings one; INTERNLM_DEVICE=cpu tries the small model instead.",
            field="INTERNLM_MODEL_DIR",
        )
    return LocalModel(ensure_small_model(settings.cache, progress), settings.model_id or SMALL_MODEL_ID)


def _checked(directory: Path) -> Path:
    config = directory / "config.json"
    try:
        json.loads(config.read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(
            f"INTERNLM_MODEL_DIR={directory}: there is no config.json in it. `internlm-chat download` fills it.",
            field="INTERNLM_MODEL_DIR",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{config} cannot be read: {error}", field="INTERNLM_MODEL_DIR") from None
    return directory
