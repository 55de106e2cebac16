"""Compute Ablation-CAM: weight each channel by how much the score drops without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from combicam.engine.explain.forward_only import FixedTargets, ForwardOnly
from combicam.export.trace.scores import class_odds, score_drops


class AblationCam(ForwardOnly):
    """``method="ablationcam"`` of a model: no gradients, C forward passes.

    For every target layer with activations A [B,C,h,w], and s the spec's score of the target:

    * s_c is the score of the same image where channel c of the layer's output is zero;
    * w_c = s - s_c;
    * M = relu(sum_c w_c A_c); layers are fused and normalised as for every other method.

    The paper and pytorch-grad-cam divide w_c by s, the same number for all channels: it changes no
    heatmap where s is positive, and inverts it where s is negative, as every ``logprob`` is, so it
    is left out. Where a layer's least activation is not exactly 0, pytorch-grad-cam replaces a
    channel by a large negative number instead of zero, which is not done here.

    Source: Desai and Ramaswamy, WACV 2020.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ablated = self._compiled(self.graph.ablated)

    def weights(
        self, images: Tensor, logits: Tensor, acts: Sequence[Tensor], targets: FixedTargets
    ) -> tuple[list[Tensor], Tensor | None]:
        """The drops of all layers' channels, and their scale."""
        batch, count = len(images), targets.values.shape[1]
        channels = [a.shape[1] for a in acts]
        every = torch.arange(sum(channels), device=images.device).repeat(batch)[:, None]
        owner = torch.arange(batch, device=images.device).repeat_interleave(sum(channels))
        # A drop of a probability is computed from log-odds, see score_drops.
        by_odds = targets.kind == "classes" and targets.spec.score != "logit"

        def measure(found: Tensor, mine: Tensor) -> Tensor:
            if by_odds:
                return class_odds(found, targets.values[mine], targets.spec.score)
            return targets.scores(found, mine)

        def without(part: slice) -> Tensor:
            mine = owner[part]
            return measure(self._ablated(images[mine], every[part])[0], mine)

        values = images.new_empty(len(owner), count, dtype=torch.float32)
        self.in_chunks(values, without)
        ablated = values.unflatten(0, (batch, sum(channels))).transpose(1, 2)  # [B,K,C of all]
        whole = measure(logits, torch.arange(batch, device=images.device))
        if by_odds:
            drops, scale = score_drops(whole, ablated, targets.spec.score)
        else:
            drops, scale = whole[..., None] - ablated, None
        return list(drops.split(channels, -1)), scale
