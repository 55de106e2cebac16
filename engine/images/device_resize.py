"""Turn and resize photos on their device, as :func:`~combicam.engine.images.resize.resize` does on
a CPU: what :mod:`combicam.kernels.resample` is told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from combicam.engine.images.resize import sizes, start, turn, upright_size
from combicam.export.preprocess import Preprocess
from combicam.kernels.resample import Axis, Strip, resampled_axis

_PHOTOS = 1024  # remembered; photos come in few sizes


@dataclass(frozen=True)
class DeviceResize:
    """How a photo becomes a model's input; addresses excepted.

    Attributes:
        shape: of the result, [H,W,C].
    """

    shape: tuple[int, int, int]
    _across: Axis
    _down: Axis
    _source_steps: tuple[int, int]  # of a pixel across and down the upright photo, bytes
    _target_steps: tuple[int, int]
    _target_corner: int

    @property
    def between(self) -> int:
        """Bytes between the two launches."""
        first, end = self._down.reach
        return (end - first) * self.shape[1] * self.shape[2]

    def strips(self, source: int, between: int, target: int) -> tuple[Strip, Strip]:
        """What to launch first and second, of the addresses of the photo and of memory."""
        step, row = self._source_steps
        (first, end), (_, width, pixel) = self._down.reach, self.shape
        kept = width * pixel  # bytes of a row once it is scaled
        corner = target + self._target_corner
        return (
            Strip(source + first * row, row, step, between, kept, pixel, end - first, self._across),
            Strip(
                between - first * kept, pixel, kept, corner, *self._target_steps, width, self._down
            ),
        )


@lru_cache(_PHOTOS)
def device_resize(
    shape: tuple[int, int, int], row: int, orientation: int, preprocess: Preprocess
) -> DeviceResize:
    """How to turn upright, scale and crop a photo.

    Args:
        shape: [h,w,C], as stored.
        row: bytes from one row to the next.
        orientation: EXIF, 1 to 8.
        preprocess: see :func:`~combicam.engine.images.resize.resize`; Pillow must not be needed.
    """
    stored_height, stored_width, channels = shape
    photo = upright_size((stored_width, stored_height), orientation)
    (height, width), scaled = sizes(photo, preprocess)
    swap, flip_down, flip_across = turn(orientation)

    def axis(size: int, whole: int, kept: int, flipped: bool) -> Axis:
        first = start(whole, kept)
        first = whole - first - kept if flipped else first
        return resampled_axis(size, whole, first, kept, preprocess.interpolation)

    steps = (channels, width * channels)
    return DeviceResize(
        (height, width, channels),
        axis(photo[0], scaled[0], width, flip_across),
        axis(photo[1], scaled[1], height, flip_down),
        (row, channels) if swap else (channels, row),
        (-steps[0] if flip_across else steps[0], -steps[1] if flip_down else steps[1]),
        flip_across * (width - 1) * steps[0] + flip_down * (height - 1) * steps[1],
    )
