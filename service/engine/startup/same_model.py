"""An engine that is started again, after a crash or a sleep, loads the model that its web server names to clients."""

from pathlib import Path

from service.delivery import manifest
from service.engine.base import EngineConfig
from service.errors import ConfigurationError


def require_same_model(config: EngineConfig) -> None:
    """Raises ConfigurationError where what `config.manifest` names does not lie in the directory any more, or not
    whole: its tokenizer is the web server's, and its name in every answer. No other start of the engine alone would
    mend that."""
    there = manifest.read(Path(config.model_dir)) if config.manifest else None
    if config.manifest and (there is None or there.digest != config.manifest):
        now = f"another one ({there.digest[:12]})" if there else "none that is whole"
        raise ConfigurationError(
            f"{config.model_dir} held the model {config.manifest[:12]} when the server started and now holds {now}: "
            "restart the server, and bring another model into a directory of its own"
        )
