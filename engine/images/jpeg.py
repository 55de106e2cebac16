"""Decode JPEG by libjpeg-turbo: Pillow's pixels in a third of its time.

Of simplejpeg, torchvision.io, torchcodec, OpenCV and Pillow, simplejpeg was the fastest, and all
agreed bit for bit (``python -m benchmarks decode``): they wrap the same library.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import simplejpeg
except ImportError:  # No wheel for this platform: Pillow decodes the same pixels.
    simplejpeg = None

JPEGS = ("JPEG", "MPO")
_MODES = ("RGB", "L")


def decode_jpeg(
    data: bytes, image: Image.Image, scale: int = 1, channels: int = 3
) -> NDArray[np.uint8] | None:
    """Decode an intact JPEG; leave all others for Pillow to decode or refuse.

    Files that libjpeg-turbo only warns about (truncation, stray bytes, bad entropy codes) are left
    to Pillow, so that a row's status does not depend on the decoder.

    Args:
        data: the whole file.
        image: the same file, opened by Pillow and its header checked, but not loaded.
        scale: 1, 2, 4 or 8, divisor of the sides while decoding.
        channels: 1 if only grey is wanted, which is decoded as such if it is stored as such.

    Returns:
        uint8 [h,w,3], or [h,w,1] of a grey file, as stored, writable; None to leave it to Pillow.
    """
    if simplejpeg is None or image.format not in JPEGS or image.mode not in _MODES:
        return None
    width, height = image.size
    sides = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:
        # With two frame headers, Pillow could have checked a smaller size than is decoded.
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        space = "GRAY" if channels == 1 and image.mode == "L" else "RGB"
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, space, **sides)
    except ValueError:
        return None
    return pixels
