"""What the allocator does with memory that is freed."""

from __future__ import annotations

import ctypes
import functools
import platform

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, <malloc.h>
_KEPT = 1 << 30
_LARGEST = 1 << 25
"""glibc's own limit for blocks that come from its heap."""


@functools.cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory; return whether it does.

    A training step frees and takes the same blocks again and again. By default glibc hands large
    ones back to the system, which then clears every page anew: some 2,000 page faults a step of a
    small model, a tenth of its time. Elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
