"""How many files a process may have open: as many as a master needs, where the system lets it."""

from __future__ import annotations

import logging
import resource
from typing import Final

#: The files of output, the connections of agents and of readers (`limits.READERS_MAX`), and what they read from.
MASTER_FILES: Final = 16_384
log = logging.getLogger(__name__)


def allow_many_open_files(wanted: int = MASTER_FILES) -> int:
    """Raise the soft limit of this process, 1,024 by default; how many there may be now.

    A master that is out of them ends: what it writes next may be a file that it cannot open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return wanted
    allowed = wanted if hard == unlimited else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # a system with another bound of its own
        allowed = soft
    if allowed < wanted:
        log.warning("this process may have %d files open, and a busy master needs more: see ulimit -n", allowed)
    return allowed
