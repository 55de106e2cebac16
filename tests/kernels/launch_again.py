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

LAYERS = [(64, 28, 28), (128, 14, 14), (128, 14, 14), *[(32, 7, 7)] * 15]  # two groups of launches
# Blocks of EfficientNet-B4 at 380.
B4 = [
    *[(24, 190, 190)] * 2,
    *[(32, 95, 95)] * 4,
    *[(56, 48, 48)] * 4,
    *[(112, 24, 24)] * 6,
    *[(160, 24, 24)] * 6,
    *[(272, 12, 12)] * 8,
    *[(448, 12, 12)] * 2,
]
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
    head = importlib.import_module("combicam.kernels.cam_head")

    def launch(
        layers: list[tuple[int, int, int]], batch: int, method: str = "gradcam"
    ) -> list[Any]:
        acts, grads = [], []
        for c, h, w in layers:
            acts.append(torch.empty(batch, h, w, c).permute(0, 3, 1, 2))
            grads.append(torch.empty(batch, 1, h, w, c).permute(0, 1, 4, 2, 3))
        launched.clear()
        started = time.perf_counter()
        with set_wrap_triton_enabled(False):  # as within an operator
            head.launch_cam_head(
                acts, grads, (56, 56), method, "sum", "map", True, 0.0, (), 1e-8, False
            )
        seconds.append(time.perf_counter() - started)
        return list(launched)

    seconds: list[float] = []
    rows = []
    for batch in (1, 2, 3, 16, 33):
        first, before = launch(LAYERS, batch), len(loaded)
        again = launch(LAYERS, batch)
        rows.append({"batch": batch, "binaries": before, "first": first, "again": again})
    others = {}
    for method in ("xgradcam", "gradcam++", "layercam"):
        others[method] = [launch(LAYERS, 2, method), launch(LAYERS, 2, method)]
    bias_act, before = importlib.import_module("combicam.kernels.bias_act"), len(loaded)
    kinds = []
    for dtype in (torch.bfloat16, torch.float16):
        whole = torch.empty(4 * 16 * 49 + 1, dtype=dtype)
        for start in (0, 1, 0, 1):  # a multiple of 16 bytes, or not
            x = whole[start : start + 4 * 16 * 49].view(4, 7, 7, 16).permute(0, 3, 1, 2)
            bias_act.launch_bias_act(x, torch.empty(16, dtype=dtype), None, "relu", x)
            kinds.append(len(loaded) - before)
    launch(B4, 1)
    times = {}
    for way in ("short", "long"):
        seconds.clear()
        for _ in range(20):
            if way == "long":
                for name in ("weigh", "combine"):
                    getattr(head, f"launch_{name}").__globals__["_plan"].cache_clear()
            launch(B4, 1)
        times[way] = median(seconds)
    print(json.dumps({"rows": rows, "others": others, "kinds": kinds, "seconds": times}))


if __name__ == "__main__":
    main()
