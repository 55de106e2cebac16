"""Masks of the evidence: PNG files beside the photos, brought to the network's input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.resize import resize
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess


def mask_path(folder: Path, identity: str) -> Path:
    """Where an image's mask lies: ``a/b.jpg`` has ``a/b.png``, ``x.tar::b.jpg`` ``x.tar/b.png``."""
    return folder / PurePosixPath(identity.replace("::", "/")).with_suffix(".png")


def read_mask(
    path: Path, photo: tuple[int, int], preprocess: Preprocess
) -> NDArray[np.bool_] | None:
    """A mask, resized and cropped as its photo is; None when there is no such file.

    Args:
        path: a PNG over the whole upright photo, of any size; evidence is what is not 0 in any
            channel (alpha is left out).
        photo: (width, height) of the upright photo, pixels.
        preprocess: of the network.

    Returns:
        bool [H,W] of the network's input.

    Raises:
        DecodeError: not a readable image.
    """
    if not path.exists():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as image:
            # Palettes are label maps: their numbers count, not their colours.
            kept = image if image.mode in ("P", "L", "1", "I", "I;16") else image.convert("RGB")
            values = np.asarray(kept)
    # Damaged files make Pillow raise nearly anything, struct.error and IndexError included.
    except Exception as error:
        raise DecodeError(
            f"mask: expected a PNG, got {path} ({type(error).__name__}: {error})"
        ) from error
    inside = values.any(-1) if values.ndim == 3 else values > 0
    whole = Image.fromarray(inside.astype(np.uint8) * 255).resize(photo, Image.Resampling.NEAREST)
    pixels = np.array(whole.convert("RGB"))
    nearest = replace(preprocess, interpolation="nearest")
    return resize(pixels, 1, photo, nearest)[..., 0] > 0
