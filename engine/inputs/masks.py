"""Find and read the mask of an image: a PNG in a separate folder, named by the image's id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.errors import DecodeError


def find_mask(folder: Path, identity: str) -> Path | None:
    """Path of an image's mask; None if it has none.

    For ``a/b.jpg``: ``a/b.jpg.png``, or else ``a/b.png``; for a member of a tar, ``x.tar::b.jpg``,
    the same in a folder named like the tar: ``x.tar/b.png``.
    """
    named = folder / identity.replace("::", "/").lstrip("/")
    candidates = (named.with_name(f"{named.name}.png"), named.with_suffix(".png"))
    return next((path for path in candidates if path.is_file()), None)


def read_mask(path: Path) -> NDArray[Any]:
    """Read a mask as stored: [h,w], also palette indices, or RGB [h,w,3] without alpha.

    Raises:
        DecodeError: not a readable PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            # Palette images are label maps: read the indices, not the colours.
            kept = image if image.mode in ("P", "L", "1", "I", "I;16") else image.convert("RGB")
            return np.asarray(kept)
    # For damaged files Pillow raises almost any exception, even struct.error and IndexError.
    except Exception as error:
        raise DecodeError(
            f"mask: expected a PNG, got {path} ({type(error).__name__}: {error})"
        ) from error
