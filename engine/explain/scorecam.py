"""Compute Score-CAM: weight each channel by the score of the image masked with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from combicam.engine.explain.backends import LOADERS, Execute
from combicam.engine.explain.memory import BatchLimit
from combicam.errors import TraceError
from combicam.export.spec import CamSpec
from combicam.export.trace.forward import ForwardGraph, trace_forward
from combicam.export.trace.scores import (
    class_scores,
    fitting_score,
    target_scores,
    weight_scores,
)
from combicam.export.trace.snapshot import no_autocast
from combicam.kernels.combine import combine_reference
from combicam.kernels.extremes import min_max
from combicam.kernels.upsample import upsample

# Memory of a masked image: input, output and workspace of the largest tensor's convolution. On a
# CPU larger chunks gain nothing; on a GPU a quarter of the free memory is used.
TENSORS_ALIVE = 4
CPU_BYTES = 2**28
MOST = 256


class ScoreCam:
    """``method="scorecam"`` of a model (arXiv 1910.01279): no gradients, C forward passes.

    For every target layer with activations A [B,C,h,w]:

    * mask H_c = minmax(U(A_c)), U the bilinear upsampling to the image; 0 for a constant channel.
      ``CamSpec.masks`` selects the order of the two steps;
    * masked image x H_c, in normalised space: masked pixels become the preprocessing's mean;
    * w_c = softmax over c of (s(x H_c) - s(0)), with s the spec's score of the target: the
      ``logit`` z, the probability ``prob`` or its logarithm ``logprob``. s(0), the baseline, is
      the same for all channels and cancels, so it is not computed;
    * M = relu(sum_c w_c A_c); layers are fused and normalised as for every other method.

    With ``logprob``, w_c = p(x H_c) / sum_c p(x H_c); the authors' code uses p(x H_c) itself,
    which gives the same map up to a factor. With ``prob``, scores differ by at most 1, so weights
    differ by at most a factor e. pytorch-grad-cam and torchcam use the ``logit``, and either no
    baseline or the image itself, which cancels as well; torchcam normalises masks on the layer's
    grid. The presets reproduce the numbers of both.

    K targets share the masked passes. Masked images are made and run ``chunk`` at a time.

    Args:
        module: a snapshot of the model.
        spec, input_size, channels, keep_layers: what to compute.
        backend: ``eager`` or ``compile``.
        device: of the model.
        chunk: masked images per pass; default: as many as easily fit into memory, at most 256.

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
        compiled: Callable[..., Any] = torch.compile if backend == "compile" else (lambda m: m)
        self._with_layers = compiled(self.graph.with_layers)
        self._logits = compiled(self.graph.logits)
        self._limit = BatchLimit(_default_chunk(self.graph, device) if chunk is None else chunk)

    def execute(self, target_input: str, count: int) -> Execute:
        """The method as a function ``images[, targets] -> outputs``, like a joint graph.

        Raises:
            TraceError: K exceeds the classes.
        """
        classes = self.graph.signature.classes
        if count > classes:
            raise TraceError(f"trace: expected targets <= {classes} (the classes), got {count}")

        def execute(inputs: Any) -> list[Tensor]:
            images, *given = inputs
            with torch.no_grad(), no_autocast(images.device):
                return self._explain(images, given[0] if given else None, target_input, count)

        return execute

    def _explain(
        self, images: Tensor, targets: Tensor | None, target_input: str, count: int
    ) -> list[Tensor]:
        spec = self.spec
        logits, *acts = self._with_layers(images)
        _, chosen, probability = target_scores(logits, targets, spec.score, target_input, count)
        fixed = targets if targets is not None and target_input == "weights" else chosen
        maps = []
        for a in acts:
            weights = self._scores(images, a, fixed, target_input).softmax(-1)  # [B,K,C]
            flat = torch.bmm(weights, a.float().flatten(2))
            maps.append(flat.unflatten(-1, a.shape[-2:]).relu())
        heatmaps, ranges = combine_reference(
            maps,
            images.shape[-2:],
            spec.fuse,
            spec.normalize,
            spec.align_corners,
            spec.eps,
            spec.layer_weights,
        )
        return [logits, chosen, probability, heatmaps, ranges, *(maps if self.keep_layers else [])]

    @property
    def chunk(self) -> int:
        """Masked images per pass; halved permanently when memory was short."""
        assert self._limit.most is not None
        return self._limit.most

    def _scores(self, images: Tensor, acts: Tensor, targets: Tensor, target_input: str) -> Tensor:
        """s(x H_c) of a layer's channels, [B,K,C], computed in chunks."""
        batch, channels = acts.shape[:2]
        owner = torch.arange(batch, device=images.device).repeat_interleave(channels)
        alone = acts.flatten(0, 1)[:, None]  # [B C,1,h,w]
        scores = images.new_empty(len(owner), targets.shape[1], dtype=torch.float32)
        start = 0

        def score_chunk(size: int) -> int:
            part = slice(start, start + size)
            mine = owner[part]
            scores[part] = self._part(images[mine], alone[part], targets[mine], target_input)
            return size

        while start < len(owner):
            start += self._limit.halve_on_oom(len(owner) - start, score_chunk)
        return scores.unflatten(0, (batch, channels)).transpose(1, 2)

    def _part(self, images: Tensor, channels: Tensor, targets: Tensor, target_input: str) -> Tensor:
        """Scores of N images, each masked with one channel, [N,K]."""
        logits = self._logits(images * self._masks(channels, images.shape[-2:]))[0]
        scores = weight_scores if target_input == "weights" else class_scores
        y, probability = scores(logits, targets, self.spec.score)
        return probability if self.spec.score in ("prob", "sigmoid") else y

    def _masks(self, channels: Tensor, size: torch.Size) -> Tensor:
        """H of channels [N,1,h,w], float32 [N,1,H,W] in [0,1]."""
        eps = self.spec.method_eps
        if self.spec.masks == "grid":
            return upsample(min_max(channels.float(), eps)[0], size, align_corners=False)
        return min_max(upsample(channels.float(), size, align_corners=True), eps)[0]


def _default_chunk(graph: ForwardGraph, device: torch.device) -> int:
    memory = CPU_BYTES
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] // 4
    return max(1, min(memory // (TENSORS_ALIVE * graph.largest), MOST))
