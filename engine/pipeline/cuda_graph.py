"""Capture a function of one batch as a CUDA graph, to save the CPU time of its launches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    weights: object


class CudaGraph:
    """Captures the function at the first batch of each shape, and replays it afterwards.

    Graphs share one memory pool: they are replayed one after the other, and results are copied
    before the next one.

    Args:
        explain: images on a CUDA device -> results on it; must not synchronise.
        weights: what the function reads for such images, by reference: a graph keeps it, since it
            reads memory by address. It is called for every batch, so that who keeps the weights of
            a few sizes keeps those that graphs read, and not others besides.
        limit: how many graphs, and what they read, are kept; the one not used for longest goes
            first.
    """

    def __init__(
        self, explain: Explain, weights: Callable[[Tensor], object], limit: int = 16
    ) -> None:
        self._explain, self._weights, self._limit = explain, weights, limit
        self._captured: OrderedDict[torch.Size, _Captured] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, images: Tensor) -> QuantisedExplanation:
        """The function's results, copied out of the graph's memory.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        weights = self._weights(images)
        if images.shape not in self._captured:
            if len(self._captured) == self._limit:
                self._captured.popitem(last=False)
            self._captured[images.shape] = self._capture(images, weights)
        self._captured.move_to_end(images.shape)
        captured = self._captured[images.shape]
        captured.images.copy_(images)
        captured.graph.replay()
        # The next replay overwrites the results; they are bytes, so copying is cheap.
        return captured.results.map(torch.clone)

    def forget(self) -> None:
        """Free the memory of all graphs."""
        self._captured.clear()
        self._pool = None

    def _capture(self, images: Tensor, weights: object) -> _Captured:
        self._stream = self._stream or torch.cuda.Stream(images.device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        static = images.clone()
        current = torch.cuda.current_stream(images.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._explain(static)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which copy and decode, may use the device meanwhile.
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
            results = self._explain(static)
        return _Captured(graph, static, results, weights)
