"""Quantise heatmaps to one byte per pixel, on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from combicam.engine.explain.explanation import Explanation
from combicam.engine.geo.location_estimate import LocationEstimator
from combicam.engine.shards.map_format import MapFormat, Size
from combicam.errors import RunError
from combicam.kernels.to_bytes import are_finite, to_bytes


@dataclass(frozen=True)
class QuantisedExplanation:
    """The stored part of an :class:`Explanation`, for B images.

    Attributes:
        heatmaps: uint8 [B,K,h,w], 255 for 1.0.
        targets: int64 [B,K].
        scores: float32 [B,K].
        ranges: float32 [B,K,2].
        flat: bool [B,K].
        finite: bool [B], all scores, ranges, heatmaps and stored layer maps of the image are
            finite.
        layer_maps: layer -> uint8 [B,K,h,w], 255 for the largest value of the map.
        layer_highs: float32 [B,L*K], these largest values, layer by layer.
        places: int64 [B,k], the most likely classes; like the rest, only if classes have locations.
        probabilities: float32 [B,k], of these classes.
        densities: float32 [B,R], the probability around the most likely one.
    """

    heatmaps: Tensor
    targets: Tensor
    scores: Tensor
    ranges: Tensor
    flat: Tensor
    finite: Tensor
    layer_maps: tuple[Tensor, ...] = ()
    layer_highs: Tensor | None = None
    places: Tensor | None = None
    probabilities: Tensor | None = None
    densities: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``change`` to every tensor."""
        return self.gather([self], lambda tensors: change(tensors[0]))

    def to_host(self, images: int) -> Self:
        """Copy the first ``images`` to the CPU; valid once the stream is synchronised."""
        return self.map(lambda t: t[:images].to("cpu", non_blocking=True))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The images of all parts, in order."""
        return parts[0] if len(parts) == 1 else cls.gather(parts, torch.cat)

    @classmethod
    def gather(cls, parts: Sequence[Self], join: Callable[[list[Tensor]], Tensor]) -> Self:
        """Join several, field by field."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if isinstance(values[0], tuple):
                joined[field.name] = tuple(join(list(maps)) for maps in zip(*values, strict=True))
            else:
                joined[field.name] = None if values[0] is None else join(values)
        return cls(**joined)


def quantise(
    explanation: Explanation,
    maps: MapFormat,
    size: Size | None = None,
    placer: LocationEstimator | None = None,
) -> QuantisedExplanation:
    """Resize heatmaps to the stored grid and round them to bytes, on their device.

    Args:
        explanation: of B images.
        maps: format of the stored maps.
        size: (h, w) of the stored heatmaps if ``maps`` does not fix it.
        placer: for classes with locations.

    Raises:
        RunError: heatmaps that are not [B,K,...], or missing layer maps.
    """
    heatmaps = explanation.heatmaps
    if heatmaps.ndim != 4 or heatmaps.shape[1] != maps.targets:
        raise RunError(
            f"run: expected heatmaps [B,{maps.targets},H,W] of the explainer, "
            f"got {tuple(heatmaps.shape)}"
        )
    if missing := [name for name in maps.layers if name not in explanation.layer_maps]:
        raise RunError(f"run: expected a map of every layer, got none of {', '.join(missing)}")
    stored = _resized(heatmaps.float(), maps, size)
    rounded, finite = to_bytes(stored)
    for values in (explanation.scores, explanation.ranges):
        finite = finite & values.isfinite().flatten(1).all(1)
    if stored.shape != heatmaps.shape:  # not all of them were read
        finite = finite & are_finite(heatmaps)
    layer_maps, highs, layers_finite = _layers([explanation.layer_maps[n] for n in maps.layers])
    for values in layers_finite:
        finite = finite & values
    placed = None if placer is None else placer(explanation.logits, explanation.targets[:, 0])
    return QuantisedExplanation(
        heatmaps=rounded,
        targets=explanation.targets.long(),
        scores=explanation.scores.float(),
        ranges=explanation.ranges.float(),
        flat=explanation.flat.bool(),
        finite=finite,
        layer_maps=layer_maps,
        layer_highs=highs,
        places=None if placed is None else placed.classes,
        probabilities=None if placed is None else placed.probabilities,
        densities=None if placed is None else placed.densities,
    )


def _resized(heatmaps: Tensor, maps: MapFormat, size: Size | None) -> Tensor:
    size = maps.size or size or (heatmaps.shape[2], heatmaps.shape[3])
    if tuple(heatmaps.shape[2:]) == size:
        return heatmaps
    if maps.align_corners is None:
        return interpolate(heatmaps, size, mode="bilinear", antialias=True)
    # Sample at the nodes of the grid, where upsampling started, instead of averaging around them.
    return interpolate(heatmaps, size, mode="bilinear", align_corners=maps.align_corners)


def _layers(
    maps: Sequence[Tensor],
) -> tuple[tuple[Tensor, ...], Tensor | None, tuple[Tensor, ...]]:
    """Bytes of the (non-negative) layer maps, the values that 255 stands for, and per layer bool
    [B], whether an image's maps are finite."""
    if not maps:
        return (), None, ()
    highs = [m.float().amax((2, 3)) for m in maps]  # [B,K]
    scaled, finite = zip(*map(to_bytes, maps, highs), strict=True)
    return scaled, torch.cat(highs, 1), finite
