"""Find how many cores this process may use, which containers limit."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "OMP_NUM_THREADS"


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may keep busy: those that it may run on, or as many as the quota
    of its control group amounts to, rounded up.

    Args:
        root: of ``/proc`` and ``/sys``.
    """
    return max(1, min([_allowed(), *(math.ceil(quota) for quota in _quotas(root))]))


def fit_threads() -> None:
    """Take no more threads for computing than a quota amounts to, in a process of our own.

    A quota is for all threads together: once they used it up, all of them wait for the next tenth
    of a second. ``OMP_NUM_THREADS`` is kept where it is set.
    """
    cores = usable_cores()
    if cores == _allowed() or _VARIABLE in os.environ:
        return
    os.environ[_VARIABLE] = str(cores)  # of OpenMP, which torch and NumPy load later
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(min(cores, torch.get_num_threads()))


def _allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """Cores that the groups of this process are limited to, and those around them.

    A container may not see the group that its processes are in: there the root is that group.
    """
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for group in (Path(path), *Path(path).parents):
            inside = group.relative_to("/")
            if not controllers:  # version 2
                yield from _share(*_text(groups / inside / "cpu.max").split())
            elif "cpu" in controllers.split(","):
                folder = groups / controllers / inside
                files = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
                yield from _share(*(_text(file).strip() for file in files))


def _share(quota: str = "", period: str = "") -> Iterator[float]:
    """Microseconds of a period, as files have them: cores; nothing without a limit or a file."""
    if quota.isdigit() and period.isdigit():
        yield int(quota) / max(1, int(period))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such group, or none that may be read
        return ""
