"""Decode an image to uint8, RGB or grey, at a model's input size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from combicam.engine.images.channels import image_channels, photo_pixels
from combicam.engine.images.formats import (
    TooLargeError,
    UnsupportedError,
    open_image,
    without_texts,
)
from combicam.engine.images.gpu_jpeg import decode_jpeg_on_gpu
from combicam.engine.images.jpeg import JPEGS, decode_frame, decode_jpeg
from combicam.engine.images.jpeg_header import plain_frame
from combicam.engine.images.resize import ORIENTATIONS, fast_scale, resize, swaps_axes
from combicam.engine.images.truncation import load_rest
from combicam.errors import DecodeError, MissingExtra
from combicam.export.preprocess import Preprocess

__all__ = ["DecodeConfig", "Decoded", "TooLargeError", "UnsupportedError", "decode_image"]

MAX_PIXELS = 200_000_000
DECODERS = ("auto", "pillow", "gpu")
_PILLOW, _SIMPLEJPEG, _NVIMAGECODEC, _LIBRAW = "pillow", "simplejpeg", "nvimagecodec", "libraw"
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
        max_pixels: images with more pixels, by their header, are refused as ``too_large``.
        tolerant: decode what is there of a truncated file; its row is ``ok``, and ``truncated``.

    Raises:
        ValueError: an unknown decoder, fast_scale on a GPU, or max_pixels below 1.
    """

    decoder: str = "auto"
    fast_scale: bool = False
    max_pixels: int = MAX_PIXELS
    tolerant: bool = False

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


@dataclass(frozen=True)
class Decoded:
    """An image at a model's input size.

    Attributes:
        pixels: uint8 [H,W,C], RGB, or luma for a model of one channel.
        width, height: of the upright image before resizing.
        decoder: ``simplejpeg``, ``nvimagecodec``, ``pillow`` or, of a DNG, ``libraw``.
        truncated: whether the file ends too early; the missing pixels are black or grey.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    decoder: str
    truncated: bool = False


def decode_image(data: bytes, preprocess: Preprocess, config: DecodeConfig = _DEFAULT) -> Decoded:
    """Decode, convert to RGB or to grey, turn upright (EXIF), resize.

    Grey is the luma of RGB, 0.299 R + 0.587 G + 0.114 B, as of Pillow's ``convert("L")``.
    Transparency is blended on white; samples of more than 8 bits are scaled to 8 by the range that
    the file says; animations give their first frame.
    Pillow reads every header but those of plain JPEGs, and decodes or refuses every file that a
    faster decoder declines, so pixels and errors do not depend on the installed decoders.

    Args:
        data: the whole encoded file.
        preprocess: its input_size, resize, crop_pct, side_step, interpolation and channels (1 or
            3) are used.
        config: of decoding; max_pixels is checked against the header, before decoding.

    Raises:
        ValueError: other channels than 1 and 3.
        TooLargeError: more pixels than the config allows.
        UnsupportedError: a format whose plug-in is not installed, or samples of unknown range.
        DecodeError: not an image, or a damaged one.
    """
    preprocess.check_photos("decode")
    try:
        try:
            return _decoded(data, preprocess, config)
        except ValueError:
            # Texts may be longer than Pillow reads, while the pixels are whole.
            if (bare := without_texts(data)) == data:
                raise
            return _decoded(bare, preprocess, config)
    except (DecodeError, MissingExtra):
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"decode: {error}") from error
    # Damaged files make Pillow raise almost any error, even struct.error and IndexError.
    except Exception as error:
        raise DecodeError(f"decode: {type(error).__name__}: {error}") from error


def _decoded(data: bytes, preprocess: Preprocess, config: DecodeConfig) -> Decoded:
    if config.decoder == "auto" and (plain := _plain(data, preprocess, config)) is not None:
        return plain
    with open_image(data, config.max_pixels) as image:
        return _loaded(data, image, preprocess, config)


def _plain(data: bytes, preprocess: Preprocess, config: DecodeConfig) -> Decoded | None:
    """Decode an intact JPEG with a plain header; None to begin again with Pillow."""
    frame = plain_frame(data)
    if frame is None or frame.width * frame.height > config.max_pixels:
        return None
    photo = (frame.width, frame.height)
    scale = fast_scale(photo, preprocess) if config.fast_scale else 1
    pixels = decode_frame(data, frame, scale, preprocess.channels)
    if pixels is None:
        return None
    pixels = image_channels(pixels, preprocess.channels)
    return Decoded(resize(pixels, 1, photo, preprocess), *photo, _SIMPLEJPEG)


def _loaded(
    data: bytes, image: Image.Image, preprocess: Preprocess, config: DecodeConfig
) -> Decoded:
    scale = 1
    if config.fast_scale and image.format in JPEGS:
        scale = fast_scale(upright_size(image.size, exif_orientation(image)), preprocess)
    opened, stored = image, image.size
    pixels, decoder, truncated = None, _NVIMAGECODEC, False
    if config.decoder == "gpu":
        pixels = decode_jpeg_on_gpu(data, image)
    if pixels is None and config.decoder != "pillow":
        pixels, decoder = decode_jpeg(data, image, scale, preprocess.channels), _SIMPLEJPEG
    if pixels is None:
        decoder = _PILLOW if image.format else _LIBRAW
        if scale > 1:
            image.draft(image.mode, (stored[0] // scale, stored[1] // scale))
        try:
            image.load()
        except Exception as error:
            if not config.tolerant:
                raise
            image, truncated = load_rest(data, image, error), True
        pixels = photo_pixels(image, preprocess.channels)
    pixels = image_channels(pixels, preprocess.channels)
    # Pillow turns TIFFs upright while it loads them.
    orientation = exif_orientation(opened)
    if scale == 1:
        stored = (pixels.shape[1], pixels.shape[0])
    photo = upright_size(stored, orientation)
    return Decoded(resize(pixels, orientation, photo, preprocess), *photo, decoder, truncated)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, 1 to 8; 1 if it says none."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        return found if found in ORIENTATIONS else 1
    # Unreadable EXIF only means that the orientation is unknown.
    except Exception:
        return 1


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) of the upright image, of those it is stored with."""
    return size[::-1] if swaps_axes(orientation) else size
