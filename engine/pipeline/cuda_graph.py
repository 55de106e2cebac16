"""Capture a function of one batch as a CUDA graph, so that its launches cost the host nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from combicam.engine.shards.quantise import QuantisedExplanation

Explain = Callable[[Tensor], QuantisedExplanation]
_WARM_UP = 3  # calls: kernels are compiled and chosen, workspaces allocated


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: Tensor
    results: QuantisedExplanation


class CudaGraph:
    """Captures the function at the first batch of a shape, and replays it for the others.

    Args:
        explain: images on a CUDA device -> results there; must not wait for the device.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._captured: dict[torch.Size, _Captured] = {}

    def __call__(self, images: Tensor) -> QuantisedExplanation:
        """What the function returns, in memory of its own.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        if images.shape not in self._captured:
            self._captured[images.shape] = self._capture(images)
        captured = self._captured[images.shape]
        captured.images.copy_(images)
        captured.graph.replay()
        # The next replay writes into the same memory; these are bytes, not activations.
        return captured.results.map(torch.clone)

    def forget(self) -> None:
        """Free the memory of all graphs."""
        self._captured.clear()

    def _capture(self, images: Tensor) -> _Captured:
        static = images.clone()
        side = torch.cuda.Stream(images.device)
        side.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._explain(static)
        torch.cuda.current_stream(images.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self._explain(static)
        return _Captured(graph, static, results)
