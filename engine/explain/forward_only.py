"""Compute maps without gradients: every channel is weighed by forward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from combicam.engine.explain.backends import LOADERS, Execute
from combicam.engine.explain.memory import BatchLimit
from combicam.errors import TraceError
from combicam.export.spec import CamSpec
from combicam.export.trace.arithmetic import plain_arithmetic
from combicam.export.trace.forward import ForwardGraph, trace_forward
from combicam.export.trace.scores import (
    class_scores,
    finer_scores,
    fitting_score,
    similar_classes,
    target_scores,
    weight_scores,
)
from combicam.export.trace.smooth import for_views, merged, of_images, views_of
from combicam.export.trace.trace import check_finer
from combicam.kernels.cam_head import combine_scaled

# Memory of a changed image: input, output and workspace of the largest tensor's convolution. On a
# CPU larger chunks gain nothing; on a GPU a quarter of the free memory is used.
TENSORS_ALIVE = 4
CPU_BYTES = 2**28
MOST = 256


@dataclass(frozen=True)
class FixedTargets:
    """What is explained of a batch, whatever the model then says of its changed images.

    Attributes:
        values: classes int64 [B,K]; with ``spec.finer`` [B,K,1+k], followed by the similar ones; or
            weights float32 [B,K,n].
        kind: ``classes``, ``finer`` or ``weights``.
        spec: of the call.
    """

    values: Tensor
    kind: str
    spec: CamSpec

    def scores(self, logits: Tensor, owner: Tensor) -> Tensor:
        """s of changed images [N,n], whose originals are ``owner`` int64 [N]: [N,K]."""
        spec, mine = self.spec, self.values[owner]
        if self.kind == "finer":
            return finer_scores(logits, mine[..., 0], mine[..., 1:], spec)[0]
        scores = weight_scores if self.kind == "weights" else class_scores
        y, probability = scores(logits, mine, spec.score)
        return probability if spec.score in ("prob", "sigmoid") else y


class ForwardOnly(ABC):
    """A method of a model that weighs channels by forward passes, made ``chunk`` at a time.

    M = relu(sum_c w_c A_c) for every target layer; layers are fused and normalised as for every
    other method. K targets share the passes.

    Args:
        module: a snapshot of the model.
        spec, input_size, keep_layers, channels: what to compute.
        backend: ``eager`` or ``compile``.
        device: of the model.
        chunk: changed images per pass; default: as many as easily fit into memory, at most 256.

    Attributes:
        graph: the traced model.

    Raises:
        ValueError: a backend that runs files, or a chunk below 1.
        LayerError, TraceError: see :func:`~combicam.export.trace.trace.trace`.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: CamSpec,
        input_size: tuple[int, int],
        keep_layers: bool,
        backend: str,
        device: torch.device,
        chunk: int | None = None,
        channels: int = 3,
    ) -> None:
        if backend in LOADERS:
            raise ValueError(
                f"Explainer: expected backend 'eager' or 'compile' for method={spec.method!r}, "
                f"which runs the model once per channel and has no single graph for a file, "
                f"got {backend!r}"
            )
        self.keep_layers = keep_layers
        self.graph = trace_forward(module, spec, input_size, channels)
        score = fitting_score(spec.score, self.graph.signature.classes)
        self.spec = replace(spec, score=score)
        self._compiled: Callable[..., Any] = torch.compile if backend == "compile" else lambda m: m
        self._with_layers = self._compiled(self.graph.with_layers)
        self._limit = BatchLimit(_default_chunk(self.graph, device) if chunk is None else chunk)

    @abstractmethod
    def weights(
        self, images: Tensor, logits: Tensor, acts: Sequence[Tensor], targets: FixedTargets
    ) -> tuple[list[Tensor], Tensor | None]:
        """w of every layer, [B,K,C]; and what all of them are to be multiplied by, [B,K] or None.

        Args:
            images: [B,C,H,W].
            logits: of them, [B,n].
            acts: per layer [B,C,h,w].
            targets: what is explained.
        """

    def execute(self, target_input: str, spec: CamSpec) -> Execute:
        """The method as a function ``images[, targets] -> outputs``, like a joint graph.

        Raises:
            TraceError: K exceeds the classes, or see :func:`check_finer`.
        """
        classes, count = self.graph.signature.classes, spec.targets
        if count > classes:
            raise TraceError(f"trace: expected targets <= {classes} (the classes), got {count}")
        check_finer(spec, classes, target_input)
        spec = replace(spec, score=self.spec.score)

        def execute(inputs: Any) -> list[Tensor]:
            images, *given = inputs
            with torch.no_grad(), plain_arithmetic(images.device):
                return self._explain(images, given[0] if given else None, target_input, spec)

        return execute

    def _explain(
        self, images: Tensor, targets: Tensor | None, target_input: str, spec: CamSpec
    ) -> list[Tensor]:
        images = views_of(images, spec.smooth)
        of_views, *acts = self._with_layers(images)
        logits = of_images(of_views, spec.smooth)
        _, chosen, probability = target_scores(
            logits, targets, spec.score, target_input, spec.targets
        )
        values, kind = chosen, "classes"
        if targets is not None and target_input == "weights":
            values, kind = targets, "weights"
        elif spec.finer:
            similar = similar_classes(logits, chosen, spec.finer)
            values, kind = torch.cat([chosen[..., None], similar], -1), "finer"
        fixed = FixedTargets(for_views(values, spec.smooth), kind, spec)
        weights, factor = self.weights(images, of_views, acts, fixed)
        maps = [
            torch.bmm(w, a.float().flatten(2)).unflatten(-1, a.shape[-2:]).relu()
            for w, a in zip(weights, acts, strict=True)
        ]
        explained = combine_scaled(
            maps,
            factor,
            images.shape[-2:],
            spec.fuse,
            spec.normalize,
            spec.align_corners,
            spec.eps,
            spec.layer_weights,
            self.keep_layers,
        )
        return [logits, chosen, probability, *merged(explained, spec.smooth)]

    @property
    def chunk(self) -> int:
        """Changed images per pass; halved permanently when memory was short."""
        assert self._limit.most is not None
        return self._limit.most

    def in_chunks(self, values: Tensor, compute: Callable[[slice], Tensor]) -> None:
        """Fill ``values`` along the first dimension, a chunk at a time."""
        start = 0

        def compute_chunk(size: int) -> int:
            part = slice(start, start + size)
            values[part] = compute(part)
            return size

        while start < len(values):
            start += self._limit.halve_on_oom(len(values) - start, compute_chunk)


def _default_chunk(graph: ForwardGraph, device: torch.device) -> int:
    memory = CPU_BYTES
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] // 4
    return max(1, min(memory // (TENSORS_ALIVE * graph.largest), MOST))
