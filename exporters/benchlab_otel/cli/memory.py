"""Memory of the commands that read archives block by block."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h


_KEPT, _OWN_PAGES = 64 << 20, 8 << 20  # bytes at the heap's end; of arrays that are mapped by themselves


def keep_freed_memory() -> None:
    """Keeps 64 MiB of what is freed for what comes next, instead of handing it all back to the kernel.

    A block's arrays go as the next one's come; fetching their pages anew, each of them zeroed, is a tenth
    of a command's time. Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _OWN_PAGES)
