"""Decode JPEG by libjpeg-turbo: Pillow's pixels in a third of its time.

Of simplejpeg, torchvision.io, torchcodec, OpenCV and Pillow, simplejpeg was the fastest, and all
agreed bit for bit (``python -m benchmarks decode``): they wrap the same library.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.jpeg_header import RGB_TRANSFORM, JpegFrame, has_common_sampling

try:
    import simplejpeg
except ImportError:  # No wheel for this platform: Pillow decodes the same pixels.
    simplejpeg = None

JPEGS = ("JPEG", "MPO")
_MODES = ("RGB", "L")
_KEPT_BYTES = 16 * 2**20  # of a thread; larger photos take longer than their page faults


class _ThreadBuffer(threading.local):
    """Memory of a thread, in which it decodes: new memory costs its page faults every time."""

    pixels = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        if size > _KEPT_BYTES:
            return np.empty(size, np.uint8)
        if size > len(self.pixels):
            self.pixels = np.empty(size, np.uint8)
        return self.pixels[:size]


_BUFFER = _ThreadBuffer()


def opened_frame(image: Image.Image) -> JpegFrame | None:
    """The frame of a JPEG of 8 bits, grey or in colour, that Pillow has opened; None of others."""
    if image.format not in JPEGS or image.mode not in _MODES:
        return None
    layers = getattr(image, "layer", ())  # of Pillow's JPEG plug-in
    is_ycbcr = image.info.get("adobe_transform") != RGB_TRANSFORM
    is_common = "progressive" not in image.info and is_ycbcr and has_common_sampling(layers)
    return JpegFrame(*image.size, image.mode == "L", is_common)


def decode_jpeg(
    data: bytes, image: Image.Image, scale: int = 1, channels: int = 3
) -> NDArray[np.uint8] | None:
    """Decode an intact JPEG that Pillow has opened; see :func:`decode_frame`.

    Args:
        data: the whole file.
        image: the same file, opened by Pillow and its header checked, but not loaded.
        scale, channels: see :func:`decode_frame`.
    """
    frame = opened_frame(image)
    return None if frame is None else decode_frame(data, frame, scale, channels)


def decode_frame(
    data: bytes, frame: JpegFrame, scale: int = 1, channels: int = 3
) -> NDArray[np.uint8] | None:
    """Decode an intact JPEG; leave all others for Pillow to decode or refuse.

    Files that libjpeg-turbo only warns about (truncation, stray bytes, bad entropy codes) are left
    to Pillow, so that a row's status does not depend on the decoder.

    Args:
        data: the whole file.
        frame: what its header says.
        scale: 1, 2, 4 or 8, divisor of the sides while decoding.
        channels: 1 if only grey is wanted, which is decoded as such if it is stored as such.

    Returns:
        uint8 [h,w,3], or [h,w,1] of a grey file, as stored, writable, valid until this thread
        decodes the next; None to leave it to Pillow.
    """
    if simplejpeg is None:
        return None
    height, width = -(-frame.height // scale), -(-frame.width // scale)
    is_grey = channels == 1 and frame.is_grey
    shape = (height, width, 1 if is_grey else 3)
    try:
        # Of two frame headers the other may be larger, and does not fit.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data,
            "GRAY" if is_grey else "RGB",
            min_height=height,
            min_width=width,
            buffer=_BUFFER.take(math.prod(shape)),
        )
    except ValueError:
        return None
    return pixels if pixels.shape == shape else None
