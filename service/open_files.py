"""How many connections one process can have open."""

import contextlib
import resource

MOST = 1 << 20
"""Linux refuses more (fs.nr_open), and a hard limit may be no limit at all."""


def raise_limit() -> None:
    """Allow this process, and those it starts, as many open files as it may ask for.

    Container runtimes leave the soft limit at 1024 for programs that call select(); every connection is a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it tells nobody
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
