"""What this download has verified so far, so that a new attempt or a restarted pod does not verify it again.

An entry counts only while the file has the size and modification time it had when it was verified, and while the hub
lists the same content.
"""

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from service.delivery.disk.durable import write_atomically
from service.delivery.hubs.catalog import RemoteFile
from service.delivery.manifest import FileRecord

log = logging.getLogger(__name__)

NAME = "journal.json"


@dataclass(frozen=True)
class Entry:
    """A verified file, and the identity the hub gave it then."""

    identity: str
    record: FileRecord


class Journal:
    """The entries, kept in a file of the scratch directory."""

    def __init__(self, scratch: Path) -> None:
        self._path = scratch / NAME
        self._entries = _load(self._path)

    def verified(self, model_dir: Path, file: RemoteFile) -> FileRecord | None:
        """The record of `file` if it was verified and has not changed since."""
        entry = self._entries.get(file.path)
        if entry is None or entry.identity != file.identity:
            return None
        try:
            found = (model_dir / file.path).stat()
        except OSError:
            return None
        same = (found.st_size, found.st_mtime_ns) == (entry.record.size, entry.record.mtime_ns)
        return entry.record if same else None

    def add(self, file: RemoteFile, record: FileRecord) -> None:
        """Note a verified file; on the disk when this returns."""
        self._entries[file.path] = Entry(file.identity, record)
        body = {path: asdict(entry) for path, entry in self._entries.items()}
        write_atomically(self._path, json.dumps(body))

    def remove(self) -> None:
        """The manifest has taken over."""
        self._path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Entry]:
    try:
        body = json.loads(path.read_text("utf-8"))
        return {name: Entry(entry["identity"], FileRecord(**entry["record"])) for name, entry in body.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the journal of the last download cannot be read and is ignored: %s", error)
        return {}
