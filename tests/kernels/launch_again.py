"""Launches of a head on a GPU that is not there: what Triton gives its driver, as JSON.

Run: python launch_again.py. A process of its own, since Triton has one driver.
"""

from __future__ import annotations

import importlib
import json
import time
from statistics import median
from typing import Any

import torch
import triton
from torch import Tensor
from torch._library.triton import set_wrap_triton_enabled
from triton.backends.compiler import GPUTarget

LAYERS = [(64, 28, 28), (128, 14, 14), (128, 14, 14), *[(32, 7, 7)] * 7]  # two groups of launches
loaded: list[str] = []
launched: list[Any] = []


class Utils:
    """Loads no binary."""

    def load_binary(self, name: str, *_: object) -> tuple[int, ...]:
        loaded.append(name)
        return 1, 2, 32, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class Launcher:
    """Keeps what a binary is launched with."""

    def __init__(self, source: Any, _metadata: object) -> None:
        self.name = source.name

    def __call__(self, x: int, y: int, z: int, _stream: int, _function: int, *rest: Any) -> None:
        launched.append([self.name, x, y, z, *(_plain(value) for value in rest[4:])])


def _plain(value: Any) -> Any:
    return list(value.shape) if isinstance(value, Tensor) else value


class Driver:
    """What Triton asks its driver for."""

    utils = Utils()
    launcher_cls = Launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def main() -> None:
    """Launch at five batch sizes, each time twice; the second launch takes the short way."""
    triton.runtime.driver.set_active(Driver())
    torch.cuda.current_device = lambda: 0
    head = importlib.import_module("combicam.kernels.cam_head")

    def launch(batch: int, method: str = "gradcam", fuse: str = "sum") -> list[Any]:
        acts, grads = [], []
        for c, h, w in LAYERS:
            acts.append(torch.empty(batch, h, w, c).permute(0, 3, 1, 2))
            grads.append(torch.empty(batch, 1, h, w, c).permute(0, 1, 4, 2, 3))
        launched.clear()
        started = time.perf_counter()
        with set_wrap_triton_enabled(False):  # as within an operator
            head.launch_cam_head(
                acts, grads, (56, 56), method, fuse, "map", True, 0.0, (), 1e-8, False
            )
        seconds.append(time.perf_counter() - started)
        return list(launched)

    seconds: list[float] = []
    rows = []
    for batch in (1, 2, 3, 16, 33):
        first, before = launch(batch), len(loaded)
        again = launch(batch)
        rows.append({"batch": batch, "binaries": before, "first": first, "again": again})
    seconds.clear()
    for _ in range(20):
        launch(16)
    others = {method: [launch(2, method), launch(2, method)] for method in ("xgradcam", "layercam")}
    print(json.dumps({"rows": rows, "median_s": median(seconds), "others": others}))


if __name__ == "__main__":
    main()
