"""A real engine process around a fake core that follows a script, given as JSON in its first argument.

`load_seconds` is what a load takes, `reload_seconds` what each but the run directory's first takes longer, and
`told_seconds` what it says that it took; `pinned`: a load holds what must not be freed; `lingering_seconds` pass from
its last message to its end. SIGUSR1 ends a load, and a hang the script asked for.
Run by `scripted` of tests/support/engines.py.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from service.engine.base import EngineConfig
from service.engine.fake import FakeCore, FakeScript
from service.engine.kernels.trials import Trials
from service.engine.worker import main
from service.errors import ConfigurationError

script = msgspec.json.decode(sys.argv[1])
misconfigured = script.pop("misconfigured", "")
broken = script.pop("broken", "")
load_seconds = script.pop("load_seconds", 0)
reload_seconds = script.pop("reload_seconds", 0)
told_seconds = script.pop("told_seconds", 0)
rogue = script.pop("rogue", "")
has_pinned = script.pop("pinned", False)
lingering_seconds = script.pop("lingering_seconds", 0)


class Pinned:
    """Memory of a broken device, as torch frees it: in a destructor, out of which no error may come."""

    def __del__(self) -> None:
        os.abort()


class SlowToClose(logging.NullHandler):
    """Logs are closed last, after the last message."""

    def close(self) -> None:
        time.sleep(lingering_seconds)


def build(config: EngineConfig, progress: Callable[[str], None]) -> FakeCore:
    """Load as the script says."""
    may_go_on = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: may_go_on.set())
    progress("pretending to load")
    logging.getLogger().addHandler(SlowToClose())
    _pinned = Pinned() if has_pinned else None
    may_go_on.wait(load_seconds)
    if reload_seconds:
        before = Path(config.trial_file).with_name("loaded-before")
        time.sleep(reload_seconds if before.exists() else 0)
        before.touch()
    trials = Trials(Path(config.trial_file))
    if rogue and rogue not in trials.convicted():
        with trials.of(rogue):
            os.kill(os.getpid(), signal.SIGKILL)
    if misconfigured:
        raise ConfigurationError(misconfigured)
    if broken:
        raise RuntimeError(broken)
    core = FakeCore(config, FakeScript(load_seconds=told_seconds, **script))
    signal.signal(signal.SIGUSR1, lambda *_: core.release())
    return core


main(build)
