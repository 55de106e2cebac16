"""The ``explain`` stage: one thread that keeps the device busy."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from combicam.engine.batch_explainer import BatchExplainer
from combicam.engine.batching import Batch
from combicam.engine.channel import Channel
from combicam.engine.map_format import MapFormat, Size, finest
from combicam.engine.quantise import QuantisedExplanation, quantise
from combicam.engine.replay import Replay
from combicam.engine.run_log import event
from combicam.engine.transfer import Transfer
from combicam.errors import RunError


@dataclass
class ExplainedBatch:
    """A batch and its results, on the CPU; None when nothing could be explained."""

    batch: Batch
    results: QuantisedExplanation | None


@dataclass
class _Launched:
    """A batch whose results may still be on their way; ``event`` marks their arrival."""

    explained: ExplainedBatch
    event: torch.cuda.Event | None

    def wait(self) -> ExplainedBatch:
        """The batch, its results there."""
        start = perf_counter()
        if self.event is not None:
            self.event.synchronize()
        batch = self.explained.batch
        batch.images = None
        batch.add_seconds("explain", perf_counter() - start)
        return self.explained


class ExplainStage:
    """Explains batches; a batch that does not fit into memory is halved, for good.

    On CUDA the next batch is launched before the results of the last are waited for.

    Args:
        explainer: called with uint8 [B,H,W,3] on its device.
        maps: what is stored.
        cuda_graphs: replay a batch's launches as one CUDA graph.

    Raises:
        ValueError: CUDA graphs on another device.

    Attributes:
        limit: the most images that fit; None as long as all batches do.
        halvings: how often memory was not enough.
    """

    def __init__(
        self, explainer: BatchExplainer, maps: MapFormat, cuda_graphs: bool = False
    ) -> None:
        self._explainer = explainer
        self._maps = maps
        self._is_cuda = explainer.device.type == "cuda"
        if cuda_graphs and not self._is_cuda:
            raise ValueError(
                f"run: expected a CUDA device for cuda_graphs, got {explainer.device}; leave it out"
            )
        self._transfer = Transfer(explainer.device)
        self._replay = Replay(self._piece) if cuda_graphs else None
        self.limit: int | None = None
        self.halvings = 0

    def explained(self, inbox: Channel[Batch]) -> Iterator[ExplainedBatch]:
        """Results of all batches, in order.

        Raises:
            RunError: the explainer failed.
        """
        launched: _Launched | None = None
        for batch in inbox:
            previous, launched = launched, self._launch(batch)
            if previous is not None:
                yield previous.wait()
            # Nothing to launch meanwhile: deliver now rather than with the next batch.
            if inbox.is_empty:
                yield launched.wait()
                launched = None
        if launched is not None:
            yield launched.wait()

    def _launch(self, batch: Batch) -> _Launched:
        start = perf_counter()
        results = None
        if batch.images is not None:
            try:
                results = self._explain(batch.images, batch.count)
            except RunError:
                raise
            except Exception as error:
                names = [r.entry.id for r in batch.records]
                raise RunError(
                    f"run: explaining {batch.count} images ({names[0]} … {names[-1]}) failed: "
                    f"{type(error).__name__}: {error}"
                ) from error
        batch.add_seconds("explain", perf_counter() - start)
        return _Launched(ExplainedBatch(batch, results), self._transfer.arrival())

    def _explain(self, images: Tensor, count: int) -> QuantisedExplanation:
        while True:
            pieces = torch.split(images, self.limit or len(images))
            try:
                explain = self._replay or self._piece
                parts = [explain(self._transfer.up(piece)) for piece in pieces]
            except torch.OutOfMemoryError:
                size = len(pieces[0])
                if size == 1:
                    raise
                self.limit = size // 2
                self.halvings += 1
                event("out_of_memory", logging.WARNING, images=size, limit=self.limit)
            else:
                return self._transfer.down(QuantisedExplanation.concatenate(parts), count)
            # Outside of the except clause: its traceback holds the tensors that did not fit.
            if self._replay is not None:
                self._replay.forget()
            if self._is_cuda:
                torch.cuda.empty_cache()

    def _piece(self, images: Tensor) -> QuantisedExplanation:
        explanation = self._explainer(images)
        if len(explanation.heatmaps) != len(images):
            raise RunError(
                f"run: expected {len(images)} explanations, got {len(explanation.heatmaps)}"
            )
        return quantise(explanation, self._maps, self._size((images.shape[1], images.shape[2])))

    def _size(self, image: Size) -> Size | None:
        """(h, w) of stored heatmaps, where images differ in size."""
        if not self._maps.varies or self._maps.align_corners is None:
            return None
        return finest(self._explainer.layers_at(image))
