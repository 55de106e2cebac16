"""Scale samples of more than 8 bits to 8, by the range that the file says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.formats import UnsupportedError

# TIFF tags.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_RANGES = ((340, 341), (280, 281))  # SMinSampleValue, SMaxSampleValue; Min…, Max… of integers


def is_deep(image: Image.Image) -> bool:
    """Whether an image of one channel has samples of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Samples as uint8 [h,w], rounded: the lowest value of the range is 0, the highest 255.

    The range is that of unsigned integers of the file's bits, or that of the tags
    ``SMinSampleValue`` and ``SMaxSampleValue`` of a TIFF. A file that has neither, such as one of
    floats or of 32-bit integers, is not guessed.

    Args:
        image: of mode ``I``, ``I;16…`` or ``F``, loaded.

    Raises:
        UnsupportedError: the range is not known.
    """
    samples = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    low, high = _range(image, samples, tags)
    if (low, high) == (0, 65535):
        scaled = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        share = (np.nan_to_num(samples.astype(np.float32)) - low) / (high - low)
        scaled = np.rint(share.clip(0, 1) * 255).astype(np.uint8)
    return 255 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled  # 0: white is zero


def _range(image: Image.Image, samples: NDArray[Any], tags: Any) -> tuple[float, float]:
    for names in _RANGES:
        if all(name in tags for name in names):
            low, high = (float(np.min(tags[name])) for name in names)
            if low < high:
                return low, high
    bits, kind = (
        np.max(tags.get(name, known)) for name, known in ((_BITS, 16), (_SAMPLE_FORMAT, 1))
    )
    least, most = samples.min(), samples.max()
    if image.mode != "F" and bits <= 16 and kind == 1 and least >= 0 and most <= 65535:
        return 0, 2 ** int(bits) - 1
    raise UnsupportedError(
        f"decode: expected samples of known range, got {samples.dtype} from {least:g} to {most:g}, "
        "and no SMinSampleValue and SMaxSampleValue in the file; convert it to 8 or 16 bits"
    )
