"""Share the threads of the CPU among several calls at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

_count = 1
_PAUSE_HARD = 2  # of omp.h


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


def end_team() -> bool:
    """End the OpenMP threads that computed for the calling thread; its next call starts others.

    GNU's OpenMP counts those of all threads. Beyond the number of cores none waits actively any
    more: the operators of another thread then wake each other hundreds of times a call, which costs
    a third of its speed (EfficientNet-Lite0, two cores).

    Returns:
        Whether torch uses GNU's OpenMP, 5.0 or later; elsewhere nothing happens.
    """
    library = _gnu_openmp()
    pause = getattr(library, "omp_pause_resource_all", None)
    return pause is not None and pause(_PAUSE_HARD) == 0


def compute_alone() -> bool:
    """Have no team in the calling thread, whose small work gains nothing by one; see ``end_team``.

    ``torch.set_num_threads`` would hold for threads that start later, too.

    Returns:
        Whether torch uses GNU's OpenMP; elsewhere nothing happens.
    """
    library = _gnu_openmp()
    if library is None:
        return False
    torch.get_num_threads()  # torch asks for its number once, now
    library.omp_set_num_threads(1)
    return True


@cache
def _gnu_openmp() -> Any:
    """The one that torch has loaded; None if it uses another."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return None
    found = {line.split()[-1] for line in maps if "/libgomp" in line}
    return ctypes.CDLL(found.pop()) if len(found) == 1 else None
