"""Decode an image to uint8 RGB at a model's input size."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from combicam.engine.images.gpu_jpeg import decode_jpeg_on_gpu
from combicam.engine.images.jpeg import JPEGS, decode_jpeg
from combicam.engine.images.resize import ORIENTATIONS, fast_scale, resize, swaps_axes
from combicam.errors import DecodeError, MissingExtra
from combicam.export.preprocess import Preprocess

# An explicit list, because Pillow starts other programs for some formats (EPS: Ghostscript).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 200_000_000
DECODERS = ("auto", "pillow", "gpu")
_PILLOW, _SIMPLEJPEG, _NVIMAGECODEC = "pillow", "simplejpeg", "nvimagecodec"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class DecodeConfig:
    """How images are decoded.

    Args:
        decoder: ``auto``: intact JPEGs by simplejpeg if it is installed, everything else by Pillow;
            ``pillow``: everything by Pillow, with the same pixels; ``gpu``: JPEGs by nvImageCodec
            on the run's GPU, what it declines as with ``auto``; some damaged files that Pillow
            refuses are decoded.
        fast_scale: decode large JPEGs at 1/2, 1/4 or 1/8 of their size (if it divides their sides)
            but at least twice the model's: up to twice as fast for 12 megapixels, but some pixels
            differ by several levels. Not on a GPU.
        max_pixels: images with more pixels, by their header, are refused as ``too_large``
            (Pillow itself refuses above 178,956,970).

    Raises:
        ValueError: an unknown decoder, fast_scale on a GPU, or max_pixels below 1.
    """

    decoder: str = "auto"
    fast_scale: bool = False
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise ValueError(f"DecodeConfig: expected decoder in {DECODERS}, got {self.decoder!r}")
        if self.max_pixels < 1:
            raise ValueError(f"DecodeConfig: expected max_pixels >= 1, got {self.max_pixels}")
        if self.decoder == "gpu" and self.fast_scale:
            raise ValueError(
                "DecodeConfig: expected fast_scale with a CPU decoder, got decoder='gpu', which "
                "decodes at full size; leave one out"
            )


_DEFAULT = DecodeConfig()


class TooLargeError(DecodeError):
    """More pixels than allowed; ``size`` is (width, height) if the header was readable."""

    def __init__(self, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.size = size


@dataclass(frozen=True)
class Decoded:
    """An image at a model's input size.

    Attributes:
        pixels: uint8 [H,W,3].
        width, height: of the upright image before resizing.
        decoder: ``simplejpeg``, ``nvimagecodec`` or ``pillow``.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    decoder: str


def decode_image(data: bytes, preprocess: Preprocess, config: DecodeConfig = _DEFAULT) -> Decoded:
    """Decode, convert to RGB, turn upright (EXIF), resize.

    Transparency is blended on white, 16 bits are scaled to 8; animations give their first frame.
    Pillow reads every header, and decodes or refuses every file that a faster decoder declines, so
    pixels and errors do not depend on the installed decoders.

    Args:
        data: the whole encoded file.
        preprocess: its input_size, resize, crop_pct, side_step and interpolation are used.
        config: of decoding; max_pixels is checked against the header, before decoding.

    Raises:
        TooLargeError: more pixels than the config allows, or than Pillow allows.
        DecodeError: not an image, or a damaged one.
    """
    try:
        with _open(data, config.max_pixels) as image:
            return _decoded(data, image, preprocess, config)
    except (DecodeError, MissingExtra):
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"decode: {error}") from error
    # Damaged files make Pillow raise almost any error, even struct.error and IndexError.
    except Exception as error:
        raise DecodeError(f"decode: {type(error).__name__}: {error}") from error


def _decoded(
    data: bytes, image: Image.Image, preprocess: Preprocess, config: DecodeConfig
) -> Decoded:
    scale = 1
    if config.fast_scale and image.format in JPEGS:
        scale = fast_scale(_upright(image.size, _orientation(image)), preprocess)
    stored = image.size
    pixels, decoder = None, _NVIMAGECODEC
    if config.decoder == "gpu":
        pixels = decode_jpeg_on_gpu(data, image)
    if pixels is None and config.decoder != "pillow":
        pixels, decoder = decode_jpeg(data, image, scale), _SIMPLEJPEG
    if pixels is None:
        decoder = _PILLOW
        if scale > 1:
            image.draft(image.mode, (stored[0] // scale, stored[1] // scale))
        image.load()
        pixels = np.array(_rgb(image))
    # Pillow turns TIFFs upright while it loads them.
    orientation = _orientation(image)
    if scale == 1:
        stored = (pixels.shape[1], pixels.shape[0])
    photo = _upright(stored, orientation)
    return Decoded(resize(pixels, orientation, photo, preprocess), *photo, decoder)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in ORIENTATIONS else 1
    # Unreadable EXIF only means that the orientation is unknown.
    except Exception:
        return 1


def _upright(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return size[::-1] if swaps_axes(orientation) else size


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise DecodeError("decode: expected an image, got an empty file")
    Image.init()  # registers the less common formats; free after the first call
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
        raise DecodeError("decode: expected 16 bits a sample, got more, of unknown scale")
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
