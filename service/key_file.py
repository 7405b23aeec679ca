"""A file of API keys, as the service reads it and whoever talks to it."""

from pathlib import Path


def keys_in(file: Path) -> list[str]:
    """Its keys, one a line; blank lines and those that begin with # are none. Raises OSError."""
    lines = (line.strip() for line in file.read_text("utf-8-sig", "replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
