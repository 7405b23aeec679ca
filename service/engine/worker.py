"""The engine process: `python -m service.engine.worker`, with its orders on standard input.

The main thread loads the core and runs the step loop; the listener's thread does all else. It ends on SIGTERM, on a
Stop, when nobody has been connected for a while, and when the core breaks: then with a last message that says why.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from service import log
from service.engine.base import Core, EngineConfig, StepFailed
from service.engine.process.lifetime import Orders
from service.engine.process.listener import Listener
from service.engine.process.loop import StepLoop
from service.engine.process.run_dir import forget
from service.errors import ConfigurationError

logger = logging.getLogger("service.engine.worker")  # __name__ is "__main__" here

TRIAL_FILE = "kernel-on-trial"
"""In the run directory, which outlives this process."""
EXIT_STOPPED, EXIT_BROKEN, EXIT_MISCONFIGURED = 0, 1, 2

FAKE_STEP_SECONDS = 0.01
"""The pace of the fake engine: about what a step takes on a GPU, so that dashboards look as they will."""

Build = Callable[[EngineConfig, Callable[[str], None]], Core]


def build(config: EngineConfig, progress: Callable[[str], None]) -> Core:
    """The core of the configured kind. Only the real ones import torch."""
    if config.kind == "fake":
        from service.engine.fake import FakeCore, FakeScript

        return FakeCore(config, FakeScript(step_seconds=FAKE_STEP_SECONDS))
    progress("importing torch")
    from service.engine.startup.build import build_core

    return build_core(config, progress)


class Worker:
    """One engine process's life. `run` is called once, on the main thread."""

    def __init__(self, orders: Orders, build: Build) -> None:
        self._orders = orders
        self._build = build
        # Whoever hears the listener may send a SIGTERM at once; it waits until `run` can heed it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._listener = Listener(orders)
        self._steps: StepLoop | None = None

    def run(self) -> NoReturn:
        """Load, then serve until the end, and leave the process."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self._serve()
        except SystemExit:
            self._end("the engine was stopped while it was loading", EXIT_STOPPED)
        except ConfigurationError as error:
            self._end(str(error), EXIT_MISCONFIGURED)
        except StepFailed as error:
            logger.exception("a step broke")
            self._end(str(error), EXIT_BROKEN)
        except Exception as error:
            logger.exception("the engine broke")
            self._end(f"{type(error).__name__}: {error}", EXIT_BROKEN)
        self._end("the engine was stopped", EXIT_STOPPED)

    def _serve(self) -> None:
        trial_file = str(Path(self._orders.run_dir) / TRIAL_FILE)
        config = msgspec.structs.replace(self._orders.config, trial_file=trial_file)
        core = self._build(config, self._listener.phase)
        self._steps = StepLoop(core, self._listener.report)
        self._listener.ready(self._steps, core.info)
        logger.info("the engine is ready", extra={"fields": core.info.startup_seconds})
        self._steps.run()

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        if self._steps is None:
            raise SystemExit
        self._steps.stop()

    def _end(self, reason: str, code: int) -> NoReturn:
        """Say why, and leave the process as it stands: what a broken device must not be asked to free is held by the
        error that is being handled (see `StepFailed`), and tearing down an interpreter with its context can hang."""
        self._listener.farewell(reason, restart=code != EXIT_MISCONFIGURED)
        forget(Path(self._orders.run_dir), os.getpid(), wait=False)
        logger.info("the engine process ends: %s", reason)
        logging.shutdown()
        os._exit(code)


def main(build: Build = build) -> None:
    """Read the orders, serve, and leave the process."""
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    log.configure(orders.config.log_level, orders.config.log_format)
    Worker(orders, build).run()


if __name__ == "__main__":
    main()
