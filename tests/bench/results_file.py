"""One file of results per GPU and day, whether one run measured everything or several ran some sections each."""

import datetime
import json
import re
from pathlib import Path

from tests.bench.targets import verdicts

Line = dict[str, object]
OF_A_RUN = ("machine", "limits")
"""Lines that belong to a run and stay as long as one of its sections does: a ratio's two figures are of one run."""


class Results:
    """The lines of one run on top of what earlier ones left in `path`, where a section's lines replace its older ones.

    The file is written after every line: a run that is cut off keeps what it has. Without a path nothing is written.
    `judges` is False of a run whose figures say nothing about a GPU.
    """

    def __init__(self, path: Path | None, judges: bool = True) -> None:
        self._path, self._judges = path, judges
        self._run = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._before = _read(path) if path is not None and path.exists() else []
        self._lines: list[Line] = []

    def add(self, line: Line) -> None:
        """One more line of this run."""
        self._lines.append({"run": self._run, **line})
        if self._path is not None:
            _replace(self._path, "".join(json.dumps(each) + "\n" for each in (*self._merged(), *self.verdicts())))

    def verdicts(self) -> list[Line]:
        """A line per target, by the figures of all runs that are left."""
        figures: dict[str, float] = {}
        for line in self._merged():
            found = line.get("figures")
            figures |= found if isinstance(found, dict) else {}
        return verdicts(figures, self._judges)

    def _merged(self) -> list[Line]:
        again = {line["section"] for line in self._lines} - set(OF_A_RUN)
        kept = [line for line in self._before if line["section"] not in again]
        runs = {line["run"] for line in kept if line["section"] not in OF_A_RUN}
        return [line for line in kept if line["run"] in runs] + self._lines


def results_path(directory: Path, gpu: str) -> Path:
    """Where the results of this GPU and day belong."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return directory / f"{slug}-{datetime.date.today().isoformat()}.json"


def _replace(path: Path, text: str) -> None:
    """At once: a run that is killed while it writes leaves the lines of all earlier ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def _read(path: Path) -> list[Line]:
    lines: list[Line] = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "section" in line]
