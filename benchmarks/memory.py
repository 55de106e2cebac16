"""How much memory a call takes beyond what the process holds before it."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib_of(call: Callable[[], Any], device: torch.device) -> float:
    """MiB at the peak of one call, beyond those before it.

    On a GPU the tensors that torch has allocated. On a CPU the resident set, after the allocator
    has given back what nobody uses; a runtime that keeps an arena of its own shows it in its first
    call only, so give a fresh one.

    Args:
        call: what is measured; its result is dropped.
        device: where it computes.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    _trim()
    _CLEAR.write_text("5")  # forget the peak so far
    held = _kib("VmRSS")
    call()
    return max(0, _kib("VmHWM") - held) / 2**10


def _trim() -> None:
    """Freed memory goes back to the system, where the C library can."""
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def _kib(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
