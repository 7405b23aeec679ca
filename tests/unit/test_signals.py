"""Tests interrupt the programs they start, however pytest itself was started."""

import subprocess
import sys

BACKGROUND = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
"""Starts a command as a shell without job control does that is told to go on (`&`, nohup): with Ctrl-C ignored."""
INTERRUPTIBLE = "import signal; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"


def test_a_child_can_be_interrupted() -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTIBLE], check=True)


def test_a_child_can_be_interrupted_though_pytest_runs_in_the_background() -> None:
    test = f"{__file__}::{test_a_child_can_be_interrupted.__name__}"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run([*BACKGROUND, *pytest], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
