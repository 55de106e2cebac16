"""Decode an image to uint8, RGB or grey, at a model's input size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from combicam.engine.images.jpeg import JPEGS, decode_frame, decode_jpeg, opened_frame
from combicam.engine.images.jpeg_header import JpegFrame, plain_frame
from combicam.engine.images.resize import (
    ORIENTATIONS,
    fast_scale,
    needs_pillow,
    resize,
    upright_size,
)
from combicam.engine.images.truncation import load_rest
from combicam.errors import DecodeError
from combicam.export.preprocess import Preprocess

__all__ = ["DecodeConfig", "Decoded", "TooLargeError", "UnsupportedError", "decode_image"]

MAX_PIXELS = 200_000_000
DECODERS = ("auto", "pillow", "gpu")
_PILLOW, _SIMPLEJPEG, _LIBRAW = "pillow", "simplejpeg", "libraw"
_ORIENTATION = 0x0112
_RGB = 3  # channels
# Of a JPEG that is not cut off, and where it is looked for: some have bytes behind it.
_END, _TAIL = b"\xff\xd9", 65536


@dataclass(frozen=True)
class DecodeConfig:
    """How images are decoded.

    Args:
        decoder: ``auto``: intact JPEGs by simplejpeg if it is installed, everything else by Pillow;
            ``pillow``: everything by Pillow, with the same pixels; ``gpu``: in runs, common JPEGs
            (baseline, of 8 bits) by nvImageCodec on the run's GPU, everything else as with
            ``auto``; some damaged files that Pillow refuses are decoded.
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
        decoder: ``simplejpeg``, ``pillow`` or, of a DNG, ``libraw``.
        truncated: whether the file ends too early; the missing pixels are black or grey.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    decoder: str
    truncated: bool = False


@dataclass(frozen=True)
class Encoded:
    """A JPEG that is left to a GPU.

    Attributes:
        data: the whole file, as bytes or uint8.
        width, height: pixels, as stored.
        orientation: EXIF, 1 to 8.
    """

    data: Any
    width: int
    height: int
    orientation: int = 1

    @property
    def photo(self) -> tuple[int, int]:
        """(width, height) of the upright image."""
        return upright_size((self.width, self.height), self.orientation)


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
    decoded = _guarded(data, preprocess, config, for_gpu=False)
    assert isinstance(decoded, Decoded)
    return decoded


def decode_or_leave(data: bytes, preprocess: Preprocess, config: DecodeConfig) -> Decoded | Encoded:
    """The same, but a JPEG of a kind that GPUs decode is left as it is, its header read.

    Args, Raises: of :func:`decode_image`.
    """
    return _guarded(data, preprocess, config, for_gpu=preprocess.channels == _RGB)


def _guarded(
    data: bytes, preprocess: Preprocess, config: DecodeConfig, for_gpu: bool
) -> Decoded | Encoded:
    preprocess.check_photos("decode")
    try:
        try:
            return _decoded(data, preprocess, config, for_gpu)
        except ValueError:
            # Texts may be longer than Pillow reads, while the pixels are whole.
            if (bare := without_texts(data)) == data:
                raise
            return _decoded(bare, preprocess, config, for_gpu)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"decode: {error}") from error
    # Damaged files make Pillow raise almost any error, even struct.error and IndexError.
    except Exception as error:
        raise DecodeError(f"decode: {type(error).__name__}: {error}") from error


def _decoded(
    data: bytes, preprocess: Preprocess, config: DecodeConfig, for_gpu: bool
) -> Decoded | Encoded:
    for_gpu = for_gpu and _END in data[-_TAIL:]
    frame = None if config.decoder == "pillow" else plain_frame(data)
    if frame is not None and frame.width * frame.height <= config.max_pixels:
        if for_gpu and (left := _left(data, frame, 1, preprocess)) is not None:
            return left
        if (plain := _plain(data, frame, preprocess, config)) is not None:
            return plain
    with open_image(data, config.max_pixels) as image:
        if for_gpu and (frame := opened_frame(image)) is not None:
            left = _left(data, frame, exif_orientation(image), preprocess)
            if left is not None:
                return left
        return _loaded(data, image, preprocess, config)


def _left(
    data: bytes, frame: JpegFrame, orientation: int, preprocess: Preprocess
) -> Encoded | None:
    left = Encoded(data, frame.width, frame.height, orientation)
    return left if frame.is_common and not needs_pillow(left.photo, preprocess) else None


def _plain(
    data: bytes, frame: JpegFrame, preprocess: Preprocess, config: DecodeConfig
) -> Decoded | None:
    """Decode an intact JPEG with a plain header; None to begin again with Pillow."""
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
    pixels, decoder, truncated = None, _SIMPLEJPEG, False
    if config.decoder != "pillow":
        pixels = decode_jpeg(data, image, scale, preprocess.channels)
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
