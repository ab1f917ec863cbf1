"""Memory of the commands that read archives block by block."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h


def keep_freed_memory() -> None:
    """Keeps what is freed for what comes next, instead of handing it back to the kernel each time.

    A block's arrays go as the next one's come; fetching their pages anew, each of them zeroed, is a tenth
    of a command's time. The most that is in use at one time does not grow. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 256 << 20)
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
