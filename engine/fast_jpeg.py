"""JPEG through libjpeg-turbo without a detour: the pixels that Pillow gives, in a third of its time.

Of simplejpeg, torchvision.io, OpenCV and Pillow, simplejpeg was the fastest and all four agreed
bit for bit (``python -m benchmarks decode``): they are the same library with the same upsampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.export.preprocess import Preprocess

simplejpeg: Any
try:
    import simplejpeg
except ImportError:  # No wheel for this platform: Pillow decodes the same pixels.
    simplejpeg = None

JPEGS = ("JPEG", "MPO")
_MODES = ("RGB", "L")
_SCALES = (8, 4, 2)
_MARGIN = 2


def decode_jpeg(data: bytes, image: Image.Image, scale: int = 1) -> NDArray[np.uint8] | None:
    """Decode what is beyond doubt; everything else is Pillow's to decode or to refuse.

    Strict: what libjpeg-turbo only warns about (truncation, stray bytes, bad entropy codes) is in
    doubt, so that a row's status does not depend on who decoded it.

    Args:
        data: the whole file.
        image: the same, opened by Pillow, whose header was checked; not loaded.
        scale: 1, 2, 4 or 8: sides are divided by it while decoding.

    Returns:
        uint8 [h,w,3] as stored, writable; None for Pillow.
    """
    if simplejpeg is None or image.format not in JPEGS or image.mode not in _MODES:
        return None
    width, height = image.size
    sides = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:
        # Two frame headers in a file could promise Pillow less than is then decoded.
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", **sides)
    except ValueError:
        return None
    return pixels


def fast_scale(photo: tuple[int, int], preprocess: Preprocess) -> int:
    """By how much a JPEG may shrink while it is decoded, so that twice the input size is left.

    Args:
        photo: (width, height) of the upright photo, pixels.
        preprocess: its input_size and resize are used.

    Returns:
        1, 2, 4 or 8.
    """
    height, width = preprocess.size_of(*photo)
    for scale in _SCALES:
        if photo[0] >= scale * _MARGIN * width and photo[1] >= scale * _MARGIN * height:
            return scale
    return 1
