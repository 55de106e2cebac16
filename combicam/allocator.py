"""Keep freed memory in the process.

glibc gives every large block back to the system when it is freed, and the next tensor of that size
costs its page faults again: half of the time of a CNN on a CPU.
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def tune_allocator() -> bool:
    """Make glibc's ``malloc`` keep large freed blocks for the next tensor.

    It holds for the whole process and all of its threads from now on: call it before the first
    large tensor. The commands do so themselves; a library must not without being asked. The process
    keeps its peak of memory until it ends.

    Returns:
        Whether the allocator was tuned: False without glibc (musl, macOS, Windows), where nothing
        happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
