"""Fusion across layers: layer maps of any resolution become one heatmap at image size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FUSES = ("sum", "mean", "max", "product", "none")
NORMALIZES = ("map", "layer", "layer+map", "grid", "grid+map", "none")


# What upsampling leaves of a constant map in float32, relative to its size: a few roundings.
FLAT = 1e-6


def is_flat(ranges: Tensor) -> Tensor:
    """Whether a map is constant to float32's rounding: [..., 2] (min, max) -> bool [...].

    NaN is not flat.
    """
    low, high = ranges[..., 0], ranges[..., 1]
    return high - low <= FLAT * torch.maximum(low.abs(), high.abs())


def min_max(x: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """(x - min) / (max - min + eps) over the last two dimensions; a flat map gives zeros.

    Args:
        x: float32 [..., H, W].
        eps: added to the divisor, as some libraries do.

    Returns:
        The normalised maps, and float32 [..., 2] with min and max before.
    """
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    ranges = torch.cat([low, high], -1)
    span = high - low
    varied = (span > FLAT * torch.maximum(low.abs(), high.abs())) & (span < torch.inf)  # not NaN
    scaled = (x - low) / (torch.where(varied, span, torch.ones_like(span)) + eps)
    scaled = torch.where(varied, scaled, torch.zeros_like(scaled))
    return scaled, ranges.squeeze(-2)


def upsample(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear [B,K,h,w] -> [B,K,H,W]; the identity where the grid already has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    # The operator itself: F.interpolate compares shapes in a way that fixes a symbolic batch.
    return torch.ops.aten.upsample_bilinear2d.default(x, list(size), align_corners)


def _at_image_size(
    maps: Sequence[Tensor], size: Sequence[int], per_layer: str, align_corners: bool, eps: float
) -> list[Tensor]:
    if per_layer == "grid":
        maps = [min_max(m, eps)[0] for m in maps]
    full = [upsample(m, size, align_corners) for m in maps]
    return [min_max(m, eps)[0] for m in full] if per_layer == "layer" else full


def _sum_by_resolution(maps: Sequence[Tensor]) -> list[Tensor]:
    """Upsampling is linear: maps of one resolution are added before it."""
    sums: dict[tuple[int, int], Tensor] = {}
    for m in maps:
        key = (m.shape[-2], m.shape[-1])
        sums[key] = sums[key] + m if key in sums else m
    return list(sums.values())


def _fuse(maps: Sequence[Tensor], fuse: str) -> Tensor:
    total = maps[0]
    for m in maps[1:]:
        if fuse == "max":
            total = torch.maximum(total, m)
        else:
            total = total * m if fuse == "product" else total + m
    return total


def combine_reference(
    maps: Sequence[Tensor],
    size: Sequence[int],
    fuse: str = "sum",
    normalize: str = "map",
    align_corners: bool = True,
    eps: float = 0.0,
    layer_weights: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """heatmap = minmax(fuse_l(w_l U(M_l))), with U the bilinear upsampling to ``size``.

    Args:
        maps: per layer float32 [B,K,h,w]; h and w differ between layers.
        size: (H, W) of the heatmaps, pixels.
        fuse: one of ``FUSES``; ``none`` stacks the layers instead.
        normalize: where min-max is applied, one of ``NORMALIZES``: the fused ``map``, every
            ``layer`` at image size, every layer on its own ``grid``, or two of them.
        align_corners: of the upsampling.
        eps: added to every min-max divisor.
        layer_weights: one factor per layer, applied after a per-layer min-max; empty for 1.

    Returns:
        heatmaps float32 [B,K,H,W] ([B,K,L,H,W] for ``fuse="none"``) and ranges float32 [B,K,2]
        ([B,K,L,2]): min and max of the fused maps before the last normalisation.
    """
    per_layer = normalize.removesuffix("+map") if normalize not in ("map", "none") else "none"
    weighted = list(maps)
    if layer_weights and per_layer == "none":
        weighted = [m * w for m, w in zip(maps, layer_weights, strict=True)]
    if fuse in ("sum", "mean") and per_layer == "none":
        full = [upsample(m, size, align_corners) for m in _sum_by_resolution(weighted)]
    else:
        full = _at_image_size(weighted, size, per_layer, align_corners, eps)
    if layer_weights and per_layer != "none":
        full = [m * w for m, w in zip(full, layer_weights, strict=True)]
    fused = torch.stack(full, 2) if fuse == "none" else _fuse(full, fuse)
    if fuse == "mean":
        fused = fused / len(maps)
    scaled, ranges = min_max(fused, eps)
    return (scaled if normalize.endswith("map") else fused), ranges
