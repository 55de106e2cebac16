"""Read the header of a plain JPEG, of which Pillow would say nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_START = b"\xff\xd8"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, all Huffman
_HUFFMAN_TABLE, _START_OF_SCAN, _TABLE, _RESTARTS, _COMMENT = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_APP0, _APP2, _APP14 = 0xE0, 0xE2, 0xEE
_BASELINE = 0xC0
_LUMA = ([(1, 1)], [(2, 1)], [(2, 2)])  # sampling factors, where those of chroma are 1
RGB_TRANSFORM = 0  # Adobe's, of components that are not YCbCr
_TABLE_SIZE = 65  # bytes, of 8 bits each
_ICC = b"ICC_PROFILE\0"
# Shorter ones are damaged, which is for Pillow to say.
_SHORTEST = {_APP0: 16, _APP2: 17, _APP14: 14}


class JpegFrame(NamedTuple):
    """What a header says.

    Attributes:
        width, height: pixels, as stored.
        is_grey: whether it is grey, or in colour.
        is_common: whether GPUs decode its kind: baseline, and grey or YCbCr, whose chroma has the
            full size, half the width, or half of both.
    """

    width: int
    height: int
    is_grey: bool
    is_common: bool


def has_common_sampling(layers: Sequence[tuple[int, int, int]]) -> bool:
    """See :class:`JpegFrame`.

    Args:
        layers: id, and horizontal and vertical sampling factor, of each component.
    """
    ids = bytes(layer[0] for layer in layers)
    factors = [tuple(layer[1:3]) for layer in layers]
    # Of grey, decoders on a CPU do not mind the factors, but GPUs do.
    is_ycbcr = ids != b"RGB" and factors[:1] in _LUMA and factors[1:] == [(1, 1), (1, 1)]
    return factors == [(1, 1)] or is_ycbcr


def plain_frame(data: bytes) -> JpegFrame | None:
    """The frame of a JPEG of 8 bits, grey or of three channels, and without metadata.

    Pillow reads a header in Python, segment by segment into objects, and holds the interpreter's
    lock. A header that has only segments of known meaning here needs no more than its size.

    Args:
        data: the whole file.

    Returns:
        None for all others: with EXIF or XMP (which may turn the image), several pictures, two
        frames, stray bytes, segments that are unusual or damaged, and for what is no JPEG.
    """
    if data[:2] != _START:
        return None
    frame, is_ycbcr, at, size = None, True, 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        end = at + 2 + length
        if end > size or length < 2:
            return None
        if marker == _START_OF_SCAN:
            return frame and frame._replace(is_common=frame.is_common and is_ycbcr)
        if marker in _FRAMES:
            if frame is not None or (frame := _frame(marker, data[at + 4 : end])) is None:
                return None
        elif marker == _TABLE:
            starts = data[at + 4 : end : _TABLE_SIZE]
            if (length - 2) % _TABLE_SIZE or any(first > 15 for first in starts):
                return None
        elif marker in _SHORTEST:
            is_other = marker == _APP2 and not data.startswith(_ICC, at + 4)
            if length < _SHORTEST[marker] or is_other:
                return None
            is_ycbcr &= marker != _APP14 or data[at + 15] != RGB_TRANSFORM
        elif marker not in (_HUFFMAN_TABLE, _RESTARTS, _COMMENT):
            return None
        at = end
    return None


def _frame(marker: int, segment: bytes) -> JpegFrame | None:
    if len(segment) not in (9, 15) or segment[0] != 8 or len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4]
    if not width or not height:
        return None
    layers = [
        (i, both >> 4, both & 15) for i, both in zip(segment[6::3], segment[7::3], strict=True)
    ]
    is_common = marker == _BASELINE and has_common_sampling(layers)
    return JpegFrame(width, height, segment[5] == 1, is_common)
