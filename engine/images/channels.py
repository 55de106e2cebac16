"""Turn pixels from RGB into grey, and from grey into RGB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from combicam.engine.images.sample_depth import eight_bits, is_deep
from combicam.export.preprocess import PHOTO_CHANNELS

# 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in 16 bits, as Pillow computes it.
_LUMA = (19595, 38470, 7471)


def photo_pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """The pixels of an image of any mode, uint8 [h,w,C]; transparency is blended on white.

    Args:
        image: loaded.
        channels: C, 1 for grey or 3 for RGB.

    Raises:
        UnsupportedError: more than 8 bits of unknown range.
    """
    if is_deep(image):
        image = Image.fromarray(eight_bits(image))
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    if channels == 1 and image.mode not in ("L", "1"):
        image = image.convert("RGB")  # by which all modes get the same luma
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if channels == 1 else pixels


def image_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """An image uint8 [h,w,c] as [h,w,C]; like :func:`batch_channels`."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 1:
        return np.array(Image.fromarray(pixels).convert("L"))[..., None]
    return np.repeat(pixels, channels, 2)


def batch_channels(pixels: Tensor, channels: int) -> Tensor:
    """Images uint8 [B,H,W,c] as [B,H,W,C]: RGB becomes luma, grey is repeated.

    Args:
        pixels: c is one of :func:`known_channels`.
        channels: C.
    """
    if pixels.shape[-1] == channels:
        return pixels
    if channels != 1:
        return pixels.expand(*pixels.shape[:-1], channels)
    weighted = (pixels[..., i].int() * weight for i, weight in enumerate(_LUMA))
    luma: Tensor = sum(weighted, start=torch.tensor(1 << 15, dtype=torch.int32))
    return (luma >> 16).to(torch.uint8)[..., None]


def known_channels(channels: int) -> Sequence[int]:
    """The channels c that :func:`batch_channels` turns into C."""
    return PHOTO_CHANNELS if channels in PHOTO_CHANNELS else (channels,)
