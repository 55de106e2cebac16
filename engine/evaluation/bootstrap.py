"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean over images, its 95 % bootstrap interval, and how many images it is the mean of."""

    mean: float
    low: float
    high: float
    images: int


def intervals(columns: NDArray[np.float64], resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """The mean of every column with its percentile interval; images are drawn with replacement.

    All columns share the drawn images. An interval of a difference of two maps on the same images
    (a paired one) is that of the column of differences.

    Args:
        columns: [N,M], N images; NaN where an image has no value.
        resamples: how often N images are drawn.
        seed: of the draws.
    """
    count = len(columns)
    there = ~np.isnan(columns)
    values = np.where(there, columns, 0.0)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(1, count))
    means = []
    with np.errstate(invalid="ignore"):
        for start in range(0, resamples, block):
            draws = rng.integers(0, count, (min(block, resamples - start), count))
            offsets = np.arange(len(draws))[:, None] * count
            times = np.bincount((draws + offsets).ravel(), minlength=draws.size)
            times = times.reshape(draws.shape).astype(np.float64)
            means.append((times @ values) / (times @ there))
        mean = values.sum(0) / there.sum(0)
    drawn = np.concatenate(means)
    return [_interval(mean[i], drawn[:, i], int(there[:, i].sum())) for i in range(len(mean))]


def _interval(mean: float, drawn: NDArray[np.float64], images: int) -> Interval:
    kept = drawn[~np.isnan(drawn)]
    if images == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    low, high = np.quantile(kept, [0.025, 0.975])
    return Interval(float(mean), float(low), float(high), images)
