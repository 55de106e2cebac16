"""Find and read the mask of an image: a PNG in a folder beside, named by the image's id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.errors import DecodeError


def find_mask(folder: Path, identity: str) -> Path | None:
    """Where an image's mask lies; None where it has none.

    Of ``a/b.jpg`` it is ``a/b.jpg.png``, or else ``a/b.png``; a member of a tar, ``x.tar::b.jpg``,
    has it in a folder that is called like the tar: ``x.tar/b.png``.
    """
    named = folder / identity.replace("::", "/").lstrip("/")
    candidates = (named.with_name(f"{named.name}.png"), named.with_suffix(".png"))
    return next((path for path in candidates if path.is_file()), None)


def read_mask(path: Path) -> NDArray[Any]:
    """A mask as its file stores it: [h,w], numbers of a palette too, or RGB [h,w,3] without alpha.

    Raises:
        DecodeError: not a readable PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            # Palettes are label maps: their numbers count, not their colours.
            kept = image if image.mode in ("P", "L", "1", "I", "I;16") else image.convert("RGB")
            return np.asarray(kept)
    # Damaged files make Pillow raise nearly anything, struct.error and IndexError included.
    except Exception as error:
        raise DecodeError(
            f"mask: expected a PNG, got {path} ({type(error).__name__}: {error})"
        ) from error
