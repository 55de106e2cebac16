"""Explanations as they are stored: heatmaps of one byte a pixel, made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from combicam.engine.explanation import Explanation
from combicam.errors import RunError

SCALE = 1 / 255


@dataclass(frozen=True)
class QuantisedExplanation:
    """What of an :class:`Explanation` is stored, for B images.

    Attributes:
        heatmaps: uint8 [B,K,H,W], 255 for 1.0.
        targets: int64 [B,K].
        scores: float32 [B,K].
        ranges: float32 [B,K,2].
        flat: bool [B,K].
        finite: bool [B], no score, range or heatmap of the image is NaN or infinite.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    ranges: Tensor
    flat: Tensor
    finite: Tensor

    def to_host(self, images: int) -> Self:
        """The first ``images``, on the CPU; not there before the stream is synchronised."""
        return type(self)(
            *(getattr(self, f.name)[:images].to("cpu", non_blocking=True) for f in fields(self))
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The images of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


def quantise(explanation: Explanation, shape: tuple[int, int, int]) -> QuantisedExplanation:
    """Resize heatmaps bilinearly to (H, W) and round them to bytes, on their device.

    Args:
        explanation: of B images.
        shape: (K, H, W) that is stored.

    Raises:
        RunError: heatmaps that are not [B,K,...].
    """
    heatmaps = explanation.heatmaps
    if heatmaps.ndim != 4 or heatmaps.shape[1] != shape[0]:
        raise RunError(
            f"run: expected heatmaps [B,{shape[0]},H,W] of the explainer, "
            f"got {tuple(heatmaps.shape)}"
        )
    finite = torch.stack(
        [
            values.isfinite().flatten(1).all(1)
            for values in (heatmaps, explanation.scores, explanation.ranges)
        ]
    ).all(0)
    heatmaps = heatmaps.float()
    if tuple(heatmaps.shape[2:]) != shape[1:]:
        heatmaps = interpolate(heatmaps, shape[1:], mode="bilinear", antialias=True)
    return QuantisedExplanation(
        heatmaps=heatmaps.nan_to_num(0.0).mul(255).round_().clamp_(0, 255).to(torch.uint8),
        targets=explanation.targets.long(),
        scores=explanation.scores.float(),
        ranges=explanation.ranges.float(),
        flat=explanation.flat.bool(),
        finite=finite,
    )
