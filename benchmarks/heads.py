"""What the CAM head is timed on: the layers of networks, random activations and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HeadCase:
    """The target layers of one network.

    Attributes:
        layers: per layer (C, h, w).
        size: (H, W) of the heatmaps, pixels.
    """

    layers: tuple[tuple[int, int, int], ...]
    size: tuple[int, int]


def _repeated(*groups: tuple[int, int, int]) -> tuple[tuple[int, int, int], ...]:
    """(count, C, h) -> that many square layers."""
    return tuple((c, h, h) for count, c, h in groups for _ in range(count))


SMALL, LARGE = (224, 224), (300, 300)
CASES = {
    "resnet50": HeadCase(_repeated((1, 256, 56), (1, 512, 28), (1, 1024, 14), (1, 2048, 7)), SMALL),
    "efficientnet_b4": HeadCase(
        _repeated((2, 24, 150), (4, 32, 75), (4, 56, 38), (6, 112, 19))
        + _repeated((6, 160, 19), (8, 272, 10), (2, 448, 10)),
        LARGE,
    ),
    "convnext": HeadCase(_repeated((3, 96, 56), (3, 192, 28), (9, 384, 14), (3, 768, 7)), SMALL),
    "tiny": HeadCase(_repeated((2, 16, 12), (1, 24, 6)), (48, 48)),
}
# Work that is timed together is this many bytes, several times a cache.
ENOUGH = {"cuda": 400e6, "cpu": 64e6}


@dataclass(frozen=True)
class Inputs:
    """One batch: activations [B,C,h,w] and gradients [B,1,C,h,w] per layer, channels-last."""

    acts: list[Tensor]
    grads: list[Tensor]


def read_bytes(case: HeadCase, batch: int, dtype: torch.dtype) -> int:
    """Every activation and gradient once."""
    elements = sum(math.prod(layer) for layer in case.layers)
    return 2 * batch * elements * dtype.itemsize


def inputs_per_call(moved: int, device: torch.device) -> int:
    """Batches that are timed together."""
    return max(1, min(64, math.ceil(ENOUGH[device.type] / moved)))


def random_inputs(
    case: HeadCase, batch: int, dtype: torch.dtype, device: torch.device, seed: int
) -> Inputs:
    """Activations as after a ReLU, gradients of a thousandth."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(c: int, h: int, w: int) -> Tensor:
        x = torch.randn(batch, h, w, c, generator=generator, device=device)
        return x.to(dtype).permute(0, 3, 1, 2)

    acts = [random(*layer).relu() for layer in case.layers]
    return Inputs(acts, [random(*layer)[:, None] * 1e-3 for layer in case.layers])


class Repeated:
    """Calls on several inputs, none of which is in a cache when its turn comes.

    On a GPU they are one CUDA graph, so that launches cost what they cost in production. Returns
    the first call's result.
    """

    def __init__(self, call: Callable[[Inputs], Any], inputs: list[Inputs], graphed: bool) -> None:
        self._calls = [partial(call, i) for i in inputs]
        self._graph: torch.cuda.CUDAGraph | None = None
        if graphed:
            self._capture()

    def _capture(self) -> None:
        for call in self._calls[:3]:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._results = [call() for call in self._calls]
        self._graph = graph

    def __call__(self) -> Any:
        if self._graph is not None:
            self._graph.replay()
            return self._results[0]
        results = [call() for call in self._calls]
        return results[0]
