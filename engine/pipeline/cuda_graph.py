"""Capture a function of one batch as a CUDA graph, to save the CPU time of its launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from combicam.engine.shards.quantise import QuantisedExplanation

Explain = Callable[[Tensor], QuantisedExplanation]
_WARM_UP = 3  # calls that compile and tune kernels and allocate workspaces


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: Tensor
    results: QuantisedExplanation


class CudaGraph:
    """Captures the function at the first batch of each shape, and replays it afterwards.

    Args:
        explain: images on a CUDA device -> results on it; must not synchronise.
    """

    def __init__(self, explain: Explain) -> None:
        self._explain = explain
        self._captured: dict[torch.Size, _Captured] = {}

    def __call__(self, images: Tensor) -> QuantisedExplanation:
        """The function's results, copied out of the graph's memory.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        if images.shape not in self._captured:
            self._captured[images.shape] = self._capture(images)
        captured = self._captured[images.shape]
        captured.images.copy_(images)
        captured.graph.replay()
        # The next replay overwrites the results; they are bytes, so copying is cheap.
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
