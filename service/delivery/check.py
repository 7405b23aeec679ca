"""`internlm-chat check`, the doctor: can this machine serve the model? Each failure names what would mend it.

The server runs the cheap half of it before it reads a byte of weights.
"""

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.delivery import manifest as manifests
from service.delivery.checks.finding import Finding, State, skip
from service.delivery.checks.gpu import check_gpu
from service.delivery.checks.hub import check_hub
from service.delivery.checks.model import check_disk, check_files, check_manifest
from service.delivery.manifest import Manifest
from service.delivery.reporting.progress import Progress
from service.download_settings import DownloadSettings
from service.environment import load_download_settings, load_settings
from service.errors import ConfigurationError
from service.settings import Settings

log = logging.getLogger(__name__)

WIDTH_IN_LOGS = 1000

STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red", State.SKIP: "dim"}


def run() -> int:
    """Check everything, print the table to standard output; 0 if nothing failed, else 1.

    Raises ConfigurationError for an environment that cannot be read.
    """
    findings = check_all(load_settings(), load_download_settings())
    # Outside a terminal there is no width to fit, and a wrapped line is hard to search.
    Console(width=None if sys.stdout.isatty() else WIDTH_IN_LOGS).print(table_of(findings))
    return int(any(finding.state is State.FAIL for finding in findings))


def check_all(settings: Settings, download: DownloadSettings) -> list[Finding]:
    """Every finding, in the order in which things are needed."""
    if settings.model_dir is None:
        return [skip("model files", "INTERNLM_MODEL_DIR is not set"), *check_gpu(settings, None)]
    model_dir = settings.model_dir.expanduser()
    files = check_files(model_dir, download.source)
    complete = files.state is State.OK
    return [
        files,
        check_manifest(model_dir, download),
        check_disk(model_dir, download, complete),
        check_hub(download, complete),
        *check_gpu(settings, model_dir),
    ]


def before_loading(settings: Settings, model_dir: Path, progress: Progress | None = None) -> Manifest | None:
    """What can be known before the weights are read; returns the directory's manifest, if it has one. `progress` is
    told of weights that must be hashed first.

    Waits for nothing: what others hold of the GPU is for the engine to see, if one has to be started. It may be an
    engine that is only to be found again. What is only to be warned of is logged. Raises ConfigurationError with the
    first failure and what would mend it.
    """
    for finding in (check_files(model_dir, progress=progress), *check_gpu(settings, model_dir)):
        sentence = f"{finding.name}: {finding.found}; {finding.remedy}"
        if finding.transient:
            continue
        if finding.state is State.FAIL:
            raise ConfigurationError(sentence, field=finding.setting)
        if finding.state is State.WARN:
            log.warning("%s", sentence)
    return manifests.read(model_dir)


def table_of(findings: list[Finding]) -> Table:
    """A row per finding, with its remedy if it has one."""
    table = Table(box=None, pad_edge=False, title="internlm-chat check", title_justify="left")
    for column in ("check", "result", "found", "what helps"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        style = STYLES[finding.state]
        table.add_row(finding.name, Text(finding.state.value, style), Text(finding.found), Text(finding.remedy))
    return table
