"""Share the threads of the CPU among several calls at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_count = 1


def streams() -> int:
    """How many calls share torch's threads; those of one are ``torch.get_num_threads()``."""
    return _count


@contextmanager
def shared_cores(count: int) -> Iterator[None]:
    """Divide torch's threads among so many calls at a time, of the whole process.

    An operator on several threads ends with the slowest of them, so a call on each thread computes
    more than one call on all. Runtimes keep what holds when they are started.

    Args:
        count: of calls; 1 changes nothing.
    """
    global _count
    threads, before = torch.get_num_threads(), _count
    _count = count
    torch.set_num_threads(max(1, threads // count))
    try:
        yield
    finally:
        _count = before
        torch.set_num_threads(threads)
