"""Writes requirements.lock from the environment it runs in: `python -m tests.support.lock` in a fresh virtualenv.

A constraints file and no hashes: torch's wheel is another one on a machine with CUDA and on one without.
"""

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[2] / "requirements.lock"

HEADER = "# The versions everything was tested with, for `pip install -c`. Written by `python -m tests.support.lock`.\n"


def frozen() -> list[str]:
    """`name==version` of everything installed but ourselves; a local version (+cpu) is not part of the lock."""
    command = [sys.executable, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.check_output(command, text=True).split()
    return sorted((line.partition("+")[0] for line in lines if "==" in line), key=str.lower)


if __name__ == "__main__":
    LOCK.write_text(HEADER + "\n".join(frozen()) + "\n")
