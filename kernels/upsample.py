"""Upsample layer maps bilinearly, in torch and inside kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from combicam.kernels.jit import jit, tl


def upsample(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Bilinear [B,K,h,w] -> [B,K,H,W]; the identity if the grid already has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    # Not F.interpolate, which compares shapes in a way that fixes a symbolic batch.
    return torch.ops.aten.upsample_bilinear2d.default(x, list(size), align_corners)


def step(grid: int, image: int, align_corners: bool) -> float:
    """Grid cells from one pixel to the next, along one dimension."""
    if align_corners:
        return (grid - 1) / (image - 1) if image > 1 else 0.0
    return grid / image


@jit
def _taps(i, GRID: tl.constexpr, STEP: tl.constexpr, ALIGN: tl.constexpr):
    """The two cells on either side of pixels i, and the distance from the first."""
    at = i.to(tl.float32) * STEP
    if not ALIGN:
        at = tl.maximum((i.to(tl.float32) + 0.5) * STEP - 0.5, 0.0)
    low = tl.minimum(at.to(tl.int32), GRID - 1)
    return low, tl.minimum(low + 1, GRID - 1), at - low.to(tl.float32)


@jit
def upsampled(
    map_ptr,  # float32 [h, w]
    y,  # int32, rows of pixels
    x,  # int32, their columns
    mask,
    h: tl.constexpr,
    w: tl.constexpr,
    STEP_Y: tl.constexpr,
    STEP_X: tl.constexpr,
    SAME: tl.constexpr,  # the grid already has image size
    ALIGN: tl.constexpr,
):
    """U(map) at pixels (y, x)."""
    if SAME:
        value = tl.load(map_ptr + y * w + x, mask=mask, other=0)
    else:
        y0, y1, dy = _taps(y, h, STEP_Y, ALIGN)
        x0, x1, dx = _taps(x, w, STEP_X, ALIGN)
        v00 = tl.load(map_ptr + y0 * w + x0, mask=mask, other=0)
        v01 = tl.load(map_ptr + y0 * w + x1, mask=mask, other=0)
        v10 = tl.load(map_ptr + y1 * w + x0, mask=mask, other=0)
        v11 = tl.load(map_ptr + y1 * w + x1, mask=mask, other=0)
        upper = v00 * (1 - dx) + v01 * dx
        lower = v10 * (1 - dx) + v11 * dx
        value = upper * (1 - dy) + lower * dy
    return value
