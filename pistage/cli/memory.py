"""The memory of processes that stay: what was freed is kept for what comes next."""

from __future__ import annotations

import ctypes
from typing import Final

from pistage.core import limits

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES: Final = 32 * limits.MIB  # the most that glibc takes for both


def keep_freed_memory() -> None:
    """Let malloc keep up to 32 MiB at the end of what it has; where there is no glibc, nothing happens.

    Frames of 256 KiB and bodies of 4 MiB are over its threshold: by default each comes from mmap and goes back, and the
    kernel makes, zeroes and takes down every page of it, which was a third of the CPU of carrying output.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and no such threshold
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
