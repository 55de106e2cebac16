"""Make one batch of photos of any size, as a run makes it of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from combicam.engine.images.channels import image_channels, photo_pixels
from combicam.engine.images.decode import DecodeConfig, decode_image, exif_orientation
from combicam.engine.images.resize import resize, upright_size
from combicam.errors import DecodeError
from combicam.export.preprocess import PHOTO_CHANNELS, Preprocess


def photo_batch(photos: Any, preprocess: Preprocess, max_pixels: int) -> NDArray[np.uint8]:
    """Photos at a model's input size, uint8 [B,H,W,C].

    Args:
        photos: see :meth:`~combicam.Explainer.prepare`.
        preprocess: of the model.
        max_pixels: larger files are refused.

    Raises:
        TypeError, ValueError, OSError, DecodeError: see :meth:`~combicam.Explainer.prepare`.
    """
    preprocess.check_photos("prepare")
    if isinstance(photos, (bytes, str, Path, Image.Image)):
        photos = [photos]
    decode = DecodeConfig(max_pixels=max_pixels)
    made = [_prepared(photo, place, preprocess, decode) for place, photo in enumerate(photos)]
    if not made:
        raise ValueError("prepare: expected at least one photo, got none")
    sizes = sorted({pixels.shape[:2] for pixels in made})
    if len(sizes) > 1:
        raise ValueError(
            f"prepare: expected photos of one shape for resize={preprocess.resize!r}, got such as "
            f"become {', '.join(map(str, sizes[:3]))}; prepare those of one shape together"
        )
    return np.stack(made)


def _prepared(
    photo: Any, place: int, preprocess: Preprocess, decode: DecodeConfig
) -> NDArray[np.uint8]:
    if isinstance(photo, Image.Image):
        pixels = photo_pixels(photo, preprocess.channels)
        orientation = exif_orientation(photo)  # after loading, which turns TIFFs upright
        size = upright_size((pixels.shape[1], pixels.shape[0]), orientation)
        return resize(pixels, orientation, size, preprocess)
    if isinstance(photo, (np.ndarray, Tensor)):
        return array_pixels(np.asarray(photo), preprocess, "prepare")
    name = f"photo {place}"
    if isinstance(photo, (str, Path)):
        name, photo = str(photo), Path(photo).read_bytes()
    if not isinstance(photo, (bytes, bytearray, memoryview)):
        raise TypeError(
            "prepare: expected photos as bytes of a file, paths, images of PIL or uint8 arrays, "
            f"got {type(photo).__name__}"
        )
    try:
        return decode_image(bytes(photo), preprocess, decode).pixels
    except DecodeError as error:
        raise type(error)(f"prepare: {name}: {error}") from error


def array_pixels(image: NDArray[Any], preprocess: Preprocess, operation: str) -> NDArray[np.uint8]:
    """The pixels of an upright photo at a model's input size, uint8 [H,W,C].

    Args:
        image: uint8 [h,w,3], RGB, or [h,w,1] or [h,w], grey.
        preprocess: of a model that takes photos.
        operation: for messages.

    Raises:
        ValueError: another array, or one without pixels.
    """
    pixels = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in PHOTO_CHANNELS:
        raise ValueError(
            f"{operation}: expected images uint8 [H,W,3] (RGB) or [H,W,1] (grey), got "
            f"{image.dtype} {image.shape}; read them with mode='RGB'"
        )
    if not image.size:
        raise ValueError(f"{operation}: expected images with pixels, got {image.shape}")
    pixels = image_channels(pixels, preprocess.channels)
    # resize takes memory as of a decoder; arrays of others may be views, or read-only.
    pixels = np.require(pixels, requirements=["C", "W"])
    return resize(pixels, 1, (image.shape[1], image.shape[0]), preprocess)
