"""Encoded photo -> uint8 RGB at a model's input size."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

# Named, because Pillow would otherwise start other programs for some (EPS: Ghostscript).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


class TooLargeError(DecodeError):
    """More pixels than allowed; ``size`` is (width, height) when the header was readable."""

    def __init__(self, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.size = size


@dataclass(frozen=True)
class Decoded:
    """``pixels`` uint8 [H,W,3]; ``width``, ``height`` of the upright photo before resizing."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decode_image(data: bytes, preprocess: Preprocess, max_pixels: int) -> Decoded:
    """Decode, turn upright (EXIF), make RGB, resize.

    Transparency is laid on white, 16 bits are scaled to 8, of animations the first frame is taken.

    Args:
        data: the whole encoded file.
        preprocess: its input_size, resize, crop_pct and interpolation are used.
        max_pixels: checked against the header, before anything is decoded.

    Raises:
        TooLargeError: more pixels than ``max_pixels``, or than Pillow allows.
        DecodeError: no image, or a damaged one.
    """
    try:
        with _open(data, max_pixels) as image:
            image.load()
            upright = _rgb(_upright(image))
        pixels = np.asarray(resize(upright, preprocess))
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"decode: {error}") from error
    # Damaged files make Pillow raise nearly anything, struct.error and IndexError included.
    except Exception as error:
        raise DecodeError(f"decode: {type(error).__name__}: {error}") from error
    return Decoded(pixels, *upright.size)


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise DecodeError("decode: expected an image, got an empty file")
    Image.init()  # registers what is beyond the commonest formats; free from the second time on
    try:
        image = Image.open(io.BytesIO(data), formats=[f for f in FORMATS if f in Image.OPEN])
    except UnidentifiedImageError as error:
        raise DecodeError(
            f"decode: expected an image ({', '.join(FORMATS)}), got {len(data)} bytes "
            f"that start with {data[:12]!r}"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        raise TooLargeError(
            f"decode: expected at most {max_pixels} pixels, got {width}x{height}; raise max_pixels",
            (width, height),
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    # The pixels are already there: unreadable EXIF only means that nothing is known of rotation.
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("decode: expected integer samples, got floating point without a scale")
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return image.convert("RGB")


def _eight_bits(samples: NDArray[np.integer]) -> NDArray[np.uint8]:
    """16 bits -> 8, rounded: 65535 is white."""
    if samples.min() < 0 or samples.max() > 65535:
        raise DecodeError("decode: expected 16 bits a sample, got values beyond; scale is unknown")
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Scale to ``preprocess.size_of`` the photo; ``crop`` takes the centre as timm does."""
    height, width = preprocess.size_of(*image.size)
    box = None
    if preprocess.resize == "crop":
        box = crop_box(image.size, (width, height), preprocess.crop_pct)
    return image.resize((width, height), FILTERS[preprocess.interpolation], box=box)


def crop_box(
    photo: tuple[int, int], crop: tuple[int, int], crop_pct: float
) -> tuple[float, float, float, float]:
    """What part of a photo timm's resize-then-centre-crop keeps: left, top, right, bottom.

    Resizing only that part gives the same pixels; resizing all of it would make an image of
    60000x1 pixels a billion pixels large.

    Args:
        photo, crop: (width, height), pixels.
        crop_pct: the crop's share of the resized photo's shorter side.
    """
    cover = [math.floor(side / crop_pct) for side in crop]
    if photo[0] * cover[1] >= photo[1] * cover[0]:
        scaled = (cover[1] * photo[0] // photo[1], cover[1])
    else:
        scaled = (cover[0], cover[0] * photo[1] // photo[0])
    starts, ends = [], []
    for original, resized, kept in zip(photo, scaled, crop, strict=True):
        start = round((resized - kept) / 2)
        starts.append(start * original / resized)
        ends.append(min((start + kept) * original / resized, float(original)))
    return starts[0], starts[1], ends[0], ends[1]
