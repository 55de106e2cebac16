"""Recognise an encoded image by its first bytes, and open it without decoding."""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image, TiffImagePlugin

from combicam.errors import DecodeError

# An explicit list, because Pillow starts other programs for some formats (EPS: Ghostscript).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEAD = 64  # bytes that tell formats apart
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_JXL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_BMP_HEADERS = {bytes([size, 0, 0, 0]) for size in (12, 40, 108, 124)}
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
_EXIF = b"Raw profile type exif"
_DNG_VERSION, _BITS, _SAMPLE_FORMAT = 50706, 258, 339
_KINDS = {1: "unsigned", 2: "signed", 3: "floating point"}


class UnsupportedError(DecodeError):
    """A file that is whole, but of a kind that is not decoded; the message says what to do."""


class TooLargeError(DecodeError):
    """More pixels than allowed; ``size`` is (width, height) if the header was readable."""

    def __init__(self, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.size = size


def image_format(head: bytes) -> str | None:
    """The format of a file by its first :data:`HEAD` bytes, such as ``JPEG``; None for no image.

    PPM is left out: its two letters also begin texts.
    """
    if head.startswith(b"BM"):  # two letters, too; but a header of known size follows
        return "BMP" if head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS else None
    Image.init()
    for name in FORMATS:
        _, accept = Image.OPEN.get(name, (None, None))
        if name not in ("PPM", "BMP") and accept is not None and accept(head[:16]):
            return name
    return "HEIF" if _is_heif(head) else "JXL" if head.startswith(_JXL) else None


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image; its header is read, and nothing is decoded but a DNG, which has no format.

    Pillow's own limit, which is one of the process, is raised to the given one where it is lower.

    Args:
        data: the whole encoded file.
        max_pixels: to refuse larger images before they are decoded.

    Raises:
        TooLargeError: more pixels.
        UnsupportedError: a format that the extra ``formats`` opens, or samples that Pillow cannot
            read.
        DecodeError: not an image.
    """
    if not data:
        raise DecodeError("decode: expected an image, got an empty file")
    Image.init()  # registers the less common formats; free after the first call
    if Image.MAX_IMAGE_PIXELS is not None and 2 * Image.MAX_IMAGE_PIXELS < max_pixels:
        Image.MAX_IMAGE_PIXELS = max_pixels  # it warns from here, and refuses twice as many
    tags = _tags(data)
    if _DNG_VERSION in tags:  # in which Pillow sees the thumbnail
        return _developed(data, max_pixels)
    image = _identified(data)
    if image is None:
        raise _unidentified(data, tags)
    _check_size(image.size, max_pixels, image.close)
    return image


def _identified(data: bytes) -> Image.Image | None:
    for name in (*FORMATS, *_extra_formats(data[:HEAD])):
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or not (accept is None or accept(data[:16]) is True):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow does
            continue
    return None


def _extra_formats(head: bytes) -> Iterator[str]:
    if _is_heif(head):
        plugin = _plugin("pillow_heif", "HEIF image")
        plugin.register_heif_opener()
        yield "HEIF"
    elif head.startswith(_JXL):
        _plugin("pillow_jxl", "JPEG XL image")  # registers itself
        yield "JXL"


def _is_heif(head: bytes) -> bool:
    if head[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return any(head[at : at + 4] in _BRANDS for at in range(8, end, 4))


def _plugin(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"decode: expected {module} to be installed for a {what}, got {error}; run: "
            "pip install 'combicam[formats]', and --retry unsupported"
        ) from error


def _developed(data: bytes, max_pixels: int) -> Image.Image:
    """A camera's raw as an upright picture, with the camera's white balance."""
    rawpy = _plugin("rawpy", "DNG")
    with rawpy.imread(io.BytesIO(data)) as raw:
        _check_size((raw.sizes.width, raw.sizes.height), max_pixels)
        return Image.fromarray(raw.postprocess(use_camera_wb=True))


def _check_size(
    size: tuple[int, int], max_pixels: int, close: Callable[[], None] = lambda: None
) -> None:
    width, height = size
    if width * height > max_pixels:
        close()
        raise TooLargeError(
            f"decode: expected at most {max_pixels} pixels, got {width}x{height}; raise max_pixels",
            size,
        )


def _unidentified(data: bytes, tags: dict[int, Any]) -> DecodeError:
    bits, kind = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    if max(bits) > 8 or max(kind) > 1:
        return UnsupportedError(
            f"decode: expected samples that Pillow reads, got a TIFF with {len(bits)} of "
            f"{bits[0]} bits, {_KINDS.get(kind[0], 'of unknown type')}; convert it to 8 bits"
        )
    return DecodeError(
        f"decode: expected an image ({', '.join(FORMATS)}), got {len(data)} bytes "
        f"that start with {data[:12]!r}"
    )


def _tags(data: bytes) -> dict[int, Any]:
    """The first directory of a TIFF; empty if it cannot be read, or if it is none."""
    if not data.startswith(tuple(TiffImagePlugin.PREFIXES)):
        return {}
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # damaged in any way
        return {}


def without_texts(data: bytes) -> bytes:
    """A PNG without its text chunks, but for EXIF; other files unchanged."""
    if not data.startswith(_PNG):
        return data
    parts, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big") + 12
        body = data[start + 8 : start + 8 + len(_EXIF)]
        if data[start + 4 : start + 8] not in _TEXT or body == _EXIF:
            parts.append(data[start : start + size])
        start += size
    return b"".join(parts)
