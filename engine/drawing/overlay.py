"""Resize an image's heatmap to the image, and blend them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from combicam.engine.drawing.blend import blend
from combicam.engine.drawing.colormaps import DEFAULT_COLORMAP

# Large images are blended a few rows at a time, because colours are computed in float32.
_ROWS = 256
_TINY = float(np.finfo(np.float32).tiny)


def as_photos(images: Any, count: int) -> tuple[NDArray[np.uint8], ...]:
    """Images as arrays on the CPU.

    Args:
        images: uint8 [B,H,W,3], or B uint8 [H,W,3] or PIL images of any sizes; a single image if
            B is 1. Grey ones, [H,W,1], are shown in RGB.
        count: B.

    Returns:
        B arrays, uint8 [H,W,3].

    Raises:
        ValueError: the wrong number of images, or not bytes in RGB or grey.
    """
    single = isinstance(images, Image.Image) or (
        isinstance(images, np.ndarray | Tensor) and images.ndim == 3
    )
    photos = tuple(_as_photo(image) for image in ([images] if single else images))
    if len(photos) != count:
        raise ValueError(
            f"picture: expected {count} photos, one for each explained image, got {len(photos)}"
        )
    return photos


def _as_photo(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    elif isinstance(image, Tensor):
        image = image.detach().cpu()
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, 2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"picture: expected photos as uint8 [H,W,3] or PIL images, got {pixels.dtype} "
            f"{pixels.shape}; normalised inputs cannot be shown, give the photos they came from"
        )
    return pixels


def display_range(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale a map that is not in [0, 1] to its smallest and largest value."""
    low, high = float(heat.min()), float(heat.max())
    if 0 <= low and high <= 1:
        return heat
    return (heat - low) / max(high - low, _TINY)


def scale_heat(heat: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a map [h,w] in [0, 1] smoothly.

    Args:
        heat: float32 [h,w].
        size: (width, height), pixels.
    """
    if heat.shape == size[::-1]:
        return heat
    scaled = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
    found: NDArray[np.float32] = np.clip(np.asarray(scaled), 0, 1)
    return found


def overlay(
    photo: NDArray[np.uint8],
    heat: NDArray[np.float32],
    colours: str = DEFAULT_COLORMAP,
    box: tuple[int, int, int, int] | None = None,
) -> NDArray[np.uint8]:
    """Draw a heatmap over an image, at the image's resolution.

    Args:
        photo: uint8 [H,W,3].
        heat: float32 [h,w], on any grid.
        colours: a colormap.
        box: left, top, right, bottom of the part that the heatmap covers; None for all.

    Returns:
        uint8 [H,W,3].
    """
    height, width = photo.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    whole = np.zeros((height, width), np.float32)
    whole[top:bottom, left:right] = scale_heat(display_range(heat), (right - left, bottom - top))
    picture = np.empty_like(photo)
    for row in range(0, height, _ROWS):
        rows = slice(row, row + _ROWS)
        picture[rows] = blend(photo[rows], whole[rows], colours)
    return picture
