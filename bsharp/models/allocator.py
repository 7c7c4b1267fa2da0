"""Memory that one operation frees is kept for the next.

A tensor of some megabytes that is handed back to the system and asked for again is cleared page by page each time, which costs
more than many an operation on it. glibc keeps up to 1 GiB of freed memory for the process once it is told to.
"""

from __future__ import annotations

import ctypes
import functools
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 2**30
THREAD_BYTES = 2**26
"""Threads get their memory in pieces of so many bytes; glibc keeps an empty one where this much is to be asked for at once."""


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the allocator, once a process; False where it is not glibc's, and nothing is changed."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = [mallopt(option, KEPT_BYTES) for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)]
    return all(done) and bool(mallopt(M_TOP_PAD, THREAD_BYTES))
