"""Read masks of the evidence, and resize them to the model's input size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.resize import resize
from combicam.engine.inputs.masks import read_mask
from combicam.export.preprocess import Preprocess


def read_evidence(path: Path, photo: tuple[int, int], preprocess: Preprocess) -> NDArray[np.bool_]:
    """Read a mask, resized and cropped like its image.

    Args:
        path: a PNG of any size that covers the whole upright image; evidence is nonzero in any
            channel except alpha.
        photo: (width, height) of the upright image, pixels.
        preprocess: of the model.

    Returns:
        bool [H,W], at the model's input size.

    Raises:
        DecodeError: not a readable image.
    """
    values = read_mask(path)
    inside = values.any(-1) if values.ndim == 3 else values > 0
    whole = Image.fromarray(inside.astype(np.uint8) * 255).resize(photo, Image.Resampling.NEAREST)
    pixels = np.array(whole.convert("RGB"))
    nearest = replace(preprocess, interpolation="nearest")
    return resize(pixels, 1, photo, nearest)[..., 0] > 0
