"""Explain batches, keeping the device or the cores busy: the ``explain`` stage."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from combicam.engine.explain.config import ONNX_BACKENDS
from combicam.engine.explain.explainer import Explainer
from combicam.engine.explain.explanation import Explanation
from combicam.engine.explain.memory import BatchLimit
from combicam.engine.explain.protocol import BatchExplainer
from combicam.engine.explain.sessions import ArtifactSession, ModelSession
from combicam.engine.explain.streams import shared_cores
from combicam.engine.explain.targets import Targets
from combicam.engine.geo.location_estimate import TOP_PLACES, LocationEstimator
from combicam.engine.geo.location_target import LocationTarget
from combicam.engine.pipeline.batch import Batch
from combicam.engine.pipeline.channel import Channel
from combicam.engine.pipeline.cuda_graph import CudaGraph
from combicam.engine.pipeline.transfer import Transfer
from combicam.engine.run.log import event
from combicam.engine.shards.map_format import MapFormat, Size, finest
from combicam.engine.shards.quantise import QuantisedExplanation, quantise
from combicam.engine.shards.status import OK
from combicam.errors import RunError, first_line
from combicam.export.spec import FORWARD_METHODS
from combicam.kernels.jit import on_device


@dataclass
class ExplainedBatch:
    """A batch and its explanations.

    Attributes:
        batch: without its images.
        results: on the CPU; None if no image could be explained.
        batch_limit: images that fit into memory, if fewer than requested.
        halvings: how often this batch was halved because memory was short.
    """

    batch: Batch
    results: QuantisedExplanation | None
    batch_limit: int | None = None
    halvings: int = 0


@dataclass
class _Launched:
    """A batch whose results may still be in transit; ``event`` marks their arrival."""

    explained: ExplainedBatch
    event: torch.cuda.Event | None

    def wait(self) -> ExplainedBatch:
        """Wait for the results, and return the batch."""
        start = perf_counter()
        if self.event is not None:
            self.event.synchronize()
        batch = self.explained.batch
        batch.images = None
        batch.add_seconds("explain", perf_counter() - start)
        return self.explained


class ExplainStage:
    """Explains batches; if memory is short, the batch size is halved permanently.

    On CUDA, the next batch is launched before waiting for the results of the last one. On a CPU,
    several may be explained at the same time, each in a thread.

    Args:
        explainer: called with uint8 [B,H,W,C] on its device.
        maps: how maps are stored.
        cuda_graphs: replay a batch's launches as one CUDA graph, if they can be captured; not with
            a target.
        target: what to explain; None for the best classes.
        top_places: number of locations stored per image, if the classes have locations.
        streams: batches explained at the same time.

    Raises:
        ValueError: CUDA graphs on a device other than CUDA, or of launches that are not torch's or
            too many; or several streams on CUDA.
    """

    def __init__(
        self,
        explainer: BatchExplainer,
        maps: MapFormat,
        cuda_graphs: bool = False,
        target: LocationTarget | None = None,
        top_places: int = TOP_PLACES,
        streams: int = 1,
    ) -> None:
        self._explainer = explainer
        self._maps = maps
        self._target = target
        classes = explainer.classes
        self._placer: LocationEstimator | None = None
        if classes is not None and classes.has_places:
            self._placer = LocationEstimator(classes, top_places, explainer.device)
        if cuda_graphs and explainer.device.type != "cuda":
            raise ValueError(
                f"run: expected a CUDA device for cuda_graphs, got {explainer.device}; leave it out"
            )
        if cuda_graphs and (other := _not_captured(explainer)):
            raise ValueError(
                f"run: expected cuda_graphs or {other}, got both: only torch's launches can be "
                "captured, and not those of a pass per channel; leave cuda_graphs out"
            )
        if streams > 1 and explainer.device.type != "cpu":
            raise ValueError(
                f"run: expected a CPU for streams {streams}, got {explainer.device}, whose batches "
                "follow each other; leave it out"
            )
        self._streams = streams
        self._transfer = Transfer(explainer.device)
        self._cuda_graph = CudaGraph(self._piece, self._weights) if cuda_graphs else None
        self._limit = BatchLimit()

    def explained(self, inbox: Channel[Batch]) -> Iterator[ExplainedBatch]:
        """Results of all batches, in order.

        Raises:
            RunError: the explainer failed.
        """
        if self._streams > 1:
            yield from self._at_once(inbox)
            return
        launched: _Launched | None = None
        for batch in inbox:
            previous, launched = launched, self._launch(batch)
            if previous is not None:
                yield previous.wait()
            # No batch is waiting: deliver now rather than with the next batch.
            if inbox.is_empty:
                yield launched.wait()
                launched = None
        if launched is not None:
            yield launched.wait()

    def _at_once(self, inbox: Channel[Batch]) -> Iterator[ExplainedBatch]:
        """The same, of several batches at a time."""
        running: deque[Future[_Launched]] = deque()
        pool = ThreadPoolExecutor(self._streams, "combicam-explain")
        with shared_cores(self._streams):
            try:
                for batch in inbox:
                    running.append(pool.submit(self._launch, batch))
                    # One waits, so that none of the threads does.
                    while running and (len(running) > self._streams or inbox.is_empty):
                        yield running.popleft().result().wait()
                while running:
                    yield running.popleft().result().wait()
            finally:
                pool.shutdown(cancel_futures=True)

    def _launch(self, batch: Batch) -> _Launched:
        start, halvings = perf_counter(), self._limit.halvings
        results = None
        if batch.images is not None:
            try:
                with on_device(self._explainer.device):
                    results = self._explain(batch.images, batch.count, self._targets(batch))
            except RunError:
                raise
            except Exception as error:
                names = [r.entry.id for r in batch.records]
                raise RunError(
                    f"run: explaining {batch.count} images ({names[0]} … {names[-1]}) failed: "
                    f"{type(error).__name__}: {error}"
                ) from error
        batch.add_seconds("explain", perf_counter() - start)
        explained = ExplainedBatch(
            batch, results, self._limit.most, self._limit.halvings - halvings
        )
        return _Launched(explained, self._transfer.arrival())

    def _weights(self, images: Tensor) -> object:
        """What an explanation of uint8 [B,H,W,C] reads."""
        if isinstance(self._explainer, Explainer):
            return self._explainer.session_at((images.shape[1], images.shape[2]))
        return self._explainer

    def _targets(self, batch: Batch) -> Tensor | None:
        """The targets of a batch, on the CPU: [B,K] or [B,K,n]."""
        if self._target is None or batch.images is None:
            return None
        entries = [record.entry for record in batch.records if record.status == OK]
        return self._target.targets(entries, len(batch.images))

    def _explain(self, images: Tensor, count: int, targets: Tensor | None) -> QuantisedExplanation:
        def explain_pieces(size: int) -> QuantisedExplanation:
            pieces = torch.split(images, size)
            split = [None] * len(pieces) if targets is None else torch.split(targets, size)
            parts = self._replayed(pieces) or [
                self._piece(self._transfer.up(piece), ids)
                for piece, ids in zip(pieces, split, strict=True)
            ]
            return QuantisedExplanation.concatenate(parts)

        halvings = self._limit.halvings
        release = None if self._cuda_graph is None else self._cuda_graph.forget
        results = self._limit.halve_on_oom(len(images), explain_pieces, release)
        if self._limit.halvings > halvings:
            event("out_of_memory", logging.WARNING, images=len(images), limit=self._limit.most)
        return self._transfer.down(results, count)

    def _replayed(self, pieces: Sequence[Tensor]) -> list[QuantisedExplanation]:
        """Explanations by CUDA graphs; none without them, or if the launches cannot be captured."""
        if self._cuda_graph is None:
            return []
        try:
            return [self._cuda_graph(self._transfer.up(piece)) for piece in pieces]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            event("cuda_graphs_off", logging.WARNING, reason=first_line(error))
            self._cuda_graph = None
            return []

    def _piece(self, images: Tensor, targets: Tensor | None = None) -> QuantisedExplanation:
        if targets is None:
            explanation = self._explainer(images)
        else:
            explanation = self._explain_targets(images, targets)
        if len(explanation.heatmaps) != len(images):
            raise RunError(
                f"run: expected {len(images)} explanations, got {len(explanation.heatmaps)}"
            )
        size = self._size((images.shape[1], images.shape[2]))
        return quantise(explanation, self._maps, size, self._placer)

    def _explain_targets(self, images: Tensor, targets: Tensor) -> Explanation:
        target = self._target
        assert target is not None
        # Weights are the same for all images: copy them once, and repeat them on the device.
        one = targets if target.weights is None else targets[:1]
        values = self._transfer.up(one).expand(len(images), *targets.shape[1:])
        explanation = self._explainer(images, targets=Targets(values, target.kind))
        # Weights have no class, unless they are those of a single class.
        named = self._transfer.up(target.classes.clamp_min(-1))
        classes = explanation.targets
        return replace(explanation, targets=torch.where(classes < 0, named, classes))

    def _size(self, image: Size) -> Size | None:
        """(h, w) of stored heatmaps, if images differ in size."""
        if not self._maps.varies or self._maps.align_corners is None:
            return None
        return finest(self._explainer.layers_at(image))


def _not_captured(explainer: BatchExplainer) -> str:
    """What an explainer has that no CUDA graph can hold; empty for nothing."""
    if explainer.spec.method in FORWARD_METHODS:
        return f"method {explainer.spec.method!r}"
    session = explainer.session if isinstance(explainer, Explainer) else None
    if isinstance(session, ArtifactSession) and session.path.suffix == ".onnx":
        return f"the file {session.path}"
    if isinstance(session, ModelSession) and session.backend in ONNX_BACKENDS:
        return f"backend {session.backend!r}"
    return ""
