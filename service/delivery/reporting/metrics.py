"""The download's figures as a Prometheus text file: it runs before there is a server that could be scraped."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from service.delivery.reporting.progress import LOG_EVERY_SECONDS

log = logging.getLogger(__name__)


class TransferMetrics:
    """Bytes done and wanted of each phase; the file is replaced as a whole, at most every five seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._next = 0.0
        self.registry = registry = CollectorRegistry()
        self._done = Gauge("internlm_delivery_bytes", "Bytes that are there.", ["phase"], registry=registry)
        self._total = Gauge("internlm_delivery_expected_bytes", "Bytes there will be.", ["phase"], registry=registry)
        self._updated = Gauge(
            "internlm_delivery_updated_timestamp_seconds", "When a phase last got further.", registry=registry
        )
        self._last: tuple[str, int] = ("", -1)

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._done.labels(phase).set(done)
        self._total.labels(phase).set(total)
        if (phase, done) != self._last:
            self._last = (phase, done)
            self._updated.set_to_current_time()
        if self._clock() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Write the file now. A place that cannot be written is no reason to go without a model."""
        self._next = self._clock() + LOG_EVERY_SECONDS
        try:
            write_to_textfile(str(self._path), self.registry)
        except OSError as error:
            log.warning("INTERNLM_DOWNLOAD_METRICS_FILE: %s", error)
