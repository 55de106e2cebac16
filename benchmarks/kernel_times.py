"""Which kernels of a GPU a call spends its time in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Contender

_KERNELS, _WIDTH = 25, 110


def profiled(contender: Contender, path: Path) -> Contender:
    """The contender, whose first timed call also appends its kernels' times to a file."""

    def prepare() -> Callable[[], Any]:
        call = contender.prepare()
        calls = 0

        def run() -> Any:
            nonlocal calls
            calls += 1
            if calls != 2 or not torch.cuda.is_available():  # the first is checked, not timed
                return call()
            with path.open("a") as file:
                file.write(f"## {contender.name}\n\n{kernel_times(call)}\n\n")
            return call()

        return run

    return replace(contender, prepare=prepare)


def kernel_times(call: Callable[[], Any]) -> str:
    """One line a kernel of one call, the longest first: µs in total, launches, name."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        call()
        torch.cuda.synchronize()
    # Operators are listed, too, with the time of their kernels.
    on_device = torch.autograd.DeviceType.CUDA
    events = [e for e in trace.key_averages() if e.device_type == on_device]
    events.sort(key=lambda e: -e.self_device_time_total)
    total = sum(e.self_device_time_total for e in events)
    count = sum(e.count for e in events)
    lines = [f"{total:9.0f} µs {count:5d} ×  all"]
    for event in events[:_KERNELS]:
        name = event.key[:_WIDTH]
        lines.append(f"{event.self_device_time_total:9.0f} µs {event.count:5d} ×  {name}")
    return "\n".join(lines)
