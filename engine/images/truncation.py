"""Decode what is there of a truncated image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.jpeg import JPEGS

_END_OF_IMAGE = b"\xff\xd9"
_BLOCK = 32  # pixels, the largest of JPEG


def load_rest(data: bytes, image: Image.Image, error: Exception) -> Image.Image:
    """The part of an image that its file has; the other pixels are black, or grey in a JPEG.

    Args:
        data: the whole file.
        image: the same file, opened by Pillow, which could not load it.
        error: of Pillow.

    Returns:
        The image, loaded.

    Raises:
        Exception: ``error``, if nothing was decoded.
    """
    try:
        if image.format in JPEGS:
            # With an end, libjpeg takes what it has, and only warns.
            rest = Image.OPEN["JPEG"][0](io.BytesIO(data + _END_OF_IMAGE), "")
            rest.load()
        else:
            opened: Any = image
            rest = opened._new(opened.im)  # which Pillow has filled up to the error
    except Exception:
        raise error from None
    if _is_blank(np.asarray(rest)):
        raise error
    return rest


def _is_blank(pixels: NDArray[Any]) -> bool:
    """Whether all pixels are alike, but for the block in which libjpeg meets the end."""
    decoded = np.ones(pixels.shape[:2], bool)
    if min(pixels.shape[:2]) > _BLOCK:
        decoded[:_BLOCK, :_BLOCK] = False
    values = pixels[decoded]
    return bool((values == values[0]).all())
