"""Resize the images of a batch, each of its own size, in two launches: ``launch_resample``.

The arithmetic is that of torch's kernels for uint8 on a CPU (``interpolate(antialias=True)``),
which is Pillow's: weights of 16 bits, and rounding to 8 bits after either axis. So pixels are the
same on both devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from combicam.kernels.jit import LaunchPlan, cdiv, jit, launch, next_power_of_2, tl

BLOCK_ROWS, BLOCK_PIXELS = 8, 32
_AXES = 1024  # remembered; photos come in few sizes
_MOST_BITS, _WEIGHT_BITS = 22, 15


class Axis(NamedTuple):
    """How pixels of one axis are made of others.

    Attributes:
        start: int32 [n], the first pixel that is read for each.
        weights: int32 [n, taps], of consecutive ones, times 2^bits; 0 beyond the image.
        bits: see there.
        reach: the first pixel that is read for any, and the one behind the last.
    """

    start: NDArray[np.int32]
    weights: NDArray[np.int32]
    bits: int
    reach: tuple[int, int]


class Strip(NamedTuple):
    """One axis of one image.

    Attributes:
        source, source_row, source_pixel: the address of the first value, and how many bytes rows
            and the pixels of the axis are apart.
        target, target_row, target_pixel: the same of the result.
        rows: number of rows, which run across the axis.
        axis: how each row is made.
    """

    source: int
    source_row: int
    source_pixel: int
    target: int
    target_row: int
    target_pixel: int
    rows: int
    axis: Axis


@lru_cache(_AXES)
def resampled_axis(size: int, scaled: int, first: int, count: int, mode: str) -> Axis:
    """Scale ``size`` pixels to ``scaled``, and keep ``count`` of them from ``first`` on.

    Args:
        size, scaled: pixels of the whole axis, before and after.
        first, count: of those after.
        mode: ``bilinear`` or ``bicubic`` (a = -0.5), widened by the factor if it shrinks.
    """
    factor = size / scaled
    shrink = max(factor, 1.0)
    support = _SUPPORT[mode] * shrink
    centre = factor * (np.arange(scaled) + 0.5)
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), size)
    read = start[:, None] + np.arange((end - start).max())
    weights = _FILTER[mode](np.abs(read - centre[:, None] + 0.5) / shrink)
    weights[read >= end[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    bits = 0
    while bits < _MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 2**_WEIGHT_BITS:
        bits += 1
    whole = np.trunc(weights * 2**bits + np.where(weights < 0, -0.5, 0.5)).astype(np.int32)
    kept = slice(first, first + count)
    reach = int(start[kept].min()), int(end[kept].max())
    return Axis(start[kept].astype(np.int32), whole[kept], bits, reach)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1 - x, 0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_FILTER = {"bilinear": _triangle, "bicubic": _cubic}
_SUPPORT = {"bilinear": 1, "bicubic": 2}


@jit(do_not_specialize=("begin", "tiles"))
def resample_kernel(
    strip_ptr,  # int64 [n, 11]
    axis_ptr,  # int32, of all axes: starts, then weights
    begin,  # the first strip of this launch
    tiles,  # of the largest strip
    CHANNELS: tl.constexpr,  # neighbours in memory
    CHANNELS_PADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
):
    """One axis of all images: rows x pixels of an image for each program."""
    i_n = (begin + tl.program_id(0) // tiles).to(tl.int64)
    i_tile = tl.program_id(0) % tiles
    field = strip_ptr + i_n * 11
    rows, pixels, taps = tl.load(field + 6), tl.load(field + 7), tl.load(field + 8)
    across = tl.cdiv(pixels, BLOCK_PIXELS)
    if i_tile < tl.cdiv(rows, BLOCK_ROWS) * across:
        source = tl.load(field).to(tl.pointer_type(tl.uint8))
        target = tl.load(field + 3).to(tl.pointer_type(tl.uint8))
        axis, bits = axis_ptr + tl.load(field + 9), tl.load(field + 10).to(tl.int32)
        o_row = (i_tile // across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None, None]
        o_pixel = (i_tile % across * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS))[None, :, None]
        o_channel = tl.arange(0, CHANNELS_PADDED)[None, None, :]
        m_pixel = o_pixel < pixels
        m_x = (o_row < rows) & m_pixel & (o_channel < CHANNELS)
        start = tl.load(axis + o_pixel, mask=m_pixel, other=0)
        weight = axis + pixels + o_pixel * taps
        p_x = source + o_row * tl.load(field + 1) + start * tl.load(field + 2) + o_channel
        total = tl.zeros((BLOCK_ROWS, BLOCK_PIXELS, CHANNELS_PADDED), tl.int32)
        for i in range(taps):
            w = tl.load(weight + i, mask=m_pixel, other=0)
            x = tl.load(p_x + i * tl.load(field + 2), mask=m_x & (w != 0), other=0)
            total += w * x.to(tl.int32)
        total = (total + (1 << (bits - 1))) >> bits
        value = tl.minimum(tl.maximum(total, 0), 255).to(tl.uint8)
        p_y = target + o_row * tl.load(field + 4) + o_pixel * tl.load(field + 5) + o_channel
        tl.store(p_y, value, mask=m_x)


def launch_resample(rounds: Sequence[Sequence[Strip]], channels: int, device: torch.device) -> None:
    """Launch the kernel, on the current device.

    Args:
        rounds: strips of memory on the device, a launch for each round: what it reads may be
            written in one before.
        channels: values of a pixel, neighbours in memory.
        device: of all of it.
    """
    places: dict[int, int] = {}  # of axes, in what they have
    axes: list[NDArray[np.int32]] = []
    end = 0
    table = np.empty((sum(map(len, rounds)), 11), np.int64)
    for row, (*numbers, axis) in zip(table, chain.from_iterable(rounds), strict=True):
        if id(axis) not in places:
            places[id(axis)] = end
            axes += [axis.start, axis.weights.ravel()]
            end += axis.start.size + axis.weights.size
        row[:] = *numbers, *axis.weights.shape, places[id(axis)], axis.bits
    # One copy for all: each would wait for what the stream was told before.
    tables = np.concatenate([table.view(np.int32).ravel(), *axes])
    on_gpu = torch.from_numpy(tables).to(device)
    read = (on_gpu[: 2 * table.size].view(torch.int64), on_gpu[2 * table.size :])
    begin = 0
    for strips in rounds:
        tiles = max(
            cdiv(strip.rows, BLOCK_ROWS) * cdiv(len(strip.axis.start), BLOCK_PIXELS)
            for strip in strips
        )
        launch(resample_kernel, _plan(channels), len(strips) * tiles, read, begin, tiles)
        begin += len(strips)


@cache
def _plan(channels: int) -> LaunchPlan:
    """Counted by tiles."""
    constants = {
        "CHANNELS": channels,
        "CHANNELS_PADDED": next_power_of_2(channels),
        "BLOCK_ROWS": BLOCK_ROWS,
        "BLOCK_PIXELS": BLOCK_PIXELS,
    }
    return LaunchPlan(1, constants)
