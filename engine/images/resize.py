"""Turn and resize pixels to a model's input size, antialiased.

torch's uint8 kernels compute like Pillow's, a horizontal and a vertical pass with rounding between
them, but several times as fast (``python -m benchmarks decode``); results differ by at most one
level, on black and white noise by two. Bicubic's overshoot is clipped between the passes, so their
order matters: the horizontal pass is first here, as in torchvision and in Pillow up to 12.
Pillow 13 puts the vertical pass first for tall images, or if the height shrinks much more, and then
differs from all of them on sharp edges.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from combicam.export.preprocess import Preprocess

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_TORCH = ("bilinear", "bicubic")
# Long, thin images are cropped before they are scaled if scaling the whole image would make more
# than this many times the pixels that are kept.
_MOST_WASTE = 16
_MARGIN = 2
_SIZES = 4096  # remembered; photos come in few
# EXIF orientation -> (swap the axes, then flip up and down, left and right).
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
ORIENTATIONS = tuple(_TURNS)


def turn(orientation: int) -> tuple[bool, bool, bool]:
    """How to turn upright: whether to swap the axes, then to flip up and down, left and right."""
    return _TURNS[orientation]


def swaps_axes(orientation: int) -> bool:
    """Whether turning upright swaps width and height."""
    return _TURNS[orientation][0]


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of the upright image, of those it is stored with."""
    return size[::-1] if swaps_axes(orientation) else size


def turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn upright: [H,W,C], a view.

    Args:
        pixels: as stored.
        orientation: EXIF, 1 to 8.
    """
    swap, down, across = _TURNS[orientation]
    upright = pixels.swapaxes(0, 1) if swap else pixels
    return upright[:: -1 if down else 1, :: -1 if across else 1]


def resize(
    pixels: NDArray[np.uint8], orientation: int, photo: tuple[int, int], preprocess: Preprocess
) -> NDArray[np.uint8]:
    """Turn upright and scale to ``preprocess.size_of`` the image; ``crop`` keeps the centre.

    Args:
        pixels: uint8 [h,w,C], C 1 or 3, as stored, contiguous and writable; may be scaled down
            already.
        orientation: EXIF, 1 to 8.
        photo: (width, height) of the full upright image, pixels.
        preprocess: its input_size, resize, crop_pct, side_step and interpolation are used.

    Returns:
        uint8 [H,W,C], contiguous.
    """
    (height, width), scaled = sizes(photo, preprocess)
    if needs_pillow(photo, preprocess):
        plane = pixels[..., 0] if pixels.shape[2] == 1 else pixels  # as Pillow has grey images
        upright = Image.fromarray(np.ascontiguousarray(turned(plane, orientation)))
        box = visible_box(upright.size, preprocess)
        kept = upright.resize((width, height), FILTERS[preprocess.interpolation], box=box)
        return np.array(kept).reshape(height, width, -1)
    whole = turned(_scaled(pixels, scaled, orientation, preprocess.interpolation), orientation)
    left, top = start(scaled[0], width), start(scaled[1], height)
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


@lru_cache(_SIZES)
def needs_pillow(photo: tuple[int, int], preprocess: Preprocess) -> bool:
    """Whether to leave an upright photo of (width, height) to Pillow: of a filter that torch has
    not, or so long and thin that it is cropped before it is scaled."""
    (height, width), scaled = sizes(photo, preprocess)
    wasteful = math.prod(scaled) > _MOST_WASTE * width * height
    return preprocess.interpolation not in _TORCH or wasteful


@lru_cache(_SIZES)
def sizes(
    photo: tuple[int, int], preprocess: Preprocess
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of the result, and (width, height) before it is cropped."""
    return preprocess.size_of(*photo), scaled_size(photo, preprocess)


def _scaled(
    pixels: NDArray[np.uint8], size: tuple[int, int], orientation: int, mode: str
) -> NDArray[np.uint8]:
    """Scale the stored image so that it has ``size`` (width, height) once it is upright.

    Turning the small image instead of the large one saves most of the time.
    """
    # This makes strides channels-last, which the kernel preserves (indexing with None would not).
    # Views are NumPy's, because torch's release the interpreter's lock, and wait for it again.
    image = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    passes = [size[::-1]]
    if swaps_axes(orientation):
        # The upright image's horizontal axis is vertical here; it must come first.
        passes = [(size[0], pixels.shape[1]), size]
    for step in passes:
        image = torch.nn.functional.interpolate(image, size=step, mode=mode, antialias=True)
    scaled: NDArray[np.uint8] = image.numpy()[0].transpose(1, 2, 0)
    return scaled


def scaled_size(photo: tuple[int, int], preprocess: Preprocess) -> tuple[int, int]:
    """The size of the scaled image before its centre is cropped: (width, height).

    Args:
        photo: (width, height) of the upright photo, pixels.
        preprocess: its input_size, resize, crop_pct and side_step are used.
    """
    crops = preprocess.resize == "crop"
    height, width = (preprocess.covering if crops else preprocess.size_of)(*photo)
    return width, height


def fast_scale(photo: tuple[int, int], preprocess: Preprocess) -> int:
    """The divisor by which a JPEG may be scaled while decoding: 1, 2, 4 or 8.

    The result is at least twice the final size, and the divisor divides both sides; otherwise the
    smaller image would cover slightly more than the original.

    Args:
        photo: (width, height) of the upright photo, pixels.
        preprocess: see :func:`scaled_size`.
    """
    spare = min(
        side / scaled for side, scaled in zip(photo, scaled_size(photo, preprocess), strict=True)
    )
    for scale in (8, 4, 2):
        if scale * _MARGIN <= spare and not any(side % scale for side in photo):
            return scale
    return 1


def start(scaled: int, kept: int) -> int:
    """The first of the pixels of an axis that are kept."""
    return round((scaled - kept) / 2)


def visible_box(
    photo: tuple[int, int], preprocess: Preprocess | None
) -> tuple[float, float, float, float]:
    """The part of an image that the model sees: left, top, right, bottom, in the image's pixels.

    Resizing only this part gives the model's input; resizing the whole image first would turn
    60000x1 pixels into a billion.

    Args:
        photo: (width, height) of the upright photo, pixels.
        preprocess: of the model; None if it sees whole images.

    Returns:
        Pixels, with fractions; (0, 0, width, height) unless ``resize`` is ``crop``.
    """
    if preprocess is None or preprocess.resize != "crop":
        return 0.0, 0.0, float(photo[0]), float(photo[1])
    starts, ends = [], []
    kept = preprocess.input_size[::-1]
    for original, scaled, side in zip(photo, scaled_size(photo, preprocess), kept, strict=True):
        first = start(scaled, side)
        starts.append(first * original / scaled)
        ends.append(min((first + side) * original / scaled, float(original)))
    return starts[0], starts[1], ends[0], ends[1]
