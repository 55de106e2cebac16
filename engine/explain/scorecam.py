"""Compute Score-CAM: weight each channel by the score of the image masked with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from combicam.engine.explain.forward_only import FixedTargets, ForwardOnly
from combicam.kernels.extremes import min_max
from combicam.kernels.upsample import upsample


class ScoreCam(ForwardOnly):
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
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._logits = self._compiled(self.graph.logits)

    def weights(
        self, images: Tensor, logits: Tensor, acts: Sequence[Tensor], targets: FixedTargets
    ) -> tuple[list[Tensor], Tensor | None]:
        """The softmax over channels of every layer."""
        return [self._scores(images, a, targets).softmax(-1) for a in acts], None

    def _scores(self, images: Tensor, acts: Tensor, targets: FixedTargets) -> Tensor:
        """s(x H_c) of a layer's channels, [B,K,C]."""
        batch, channels = acts.shape[:2]
        owner = torch.arange(batch, device=images.device).repeat_interleave(channels)
        alone = acts.flatten(0, 1)[:, None]  # [B C,1,h,w]
        scores = images.new_empty(len(owner), targets.values.shape[1], dtype=torch.float32)

        def masked_scores(part: slice) -> Tensor:
            mine = owner[part]
            masks = self._masks(alone[part], images.shape[-2:])
            return targets.scores(self._logits(images[mine] * masks)[0], mine)

        self.in_chunks(scores, masked_scores)
        return scores.unflatten(0, (batch, channels)).transpose(1, 2)

    def _masks(self, channels: Tensor, size: torch.Size) -> Tensor:
        """H of channels [N,1,h,w], float32 [N,1,H,W] in [0,1]."""
        eps = self.spec.method_eps
        if self.spec.masks == "grid":
            return upsample(min_max(channels.float(), eps)[0], size, align_corners=False)
        return min_max(upsample(channels.float(), size, align_corners=True), eps)[0]
