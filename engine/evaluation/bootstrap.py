"""Compute means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

_DRAWN_AT_ONCE = 4_000_000  # values, 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over images, its 95 % bootstrap interval, and how many images it is the mean of."""

    mean: float
    low: float
    high: float
    images: int


def intervals(columns: NDArray[np.float64], resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """The mean of every column with its percentile interval; images are drawn with replacement.

    Columns that have values for the same images share the drawn images. An interval of a difference
    of two maps on the same images (a paired one) is that of the column of differences.

    Args:
        columns: [N,M], N images; NaN where an image has no value.
        resamples: how often the images with a value are drawn.
        seed: of the draws.
    """
    return [_interval(column[~np.isnan(column)], resamples, seed) for column in columns.T]


def _interval(values: NDArray[np.float64], resamples: int, seed: int) -> Interval:
    count = len(values)
    mean = float(values.mean()) if count else np.nan
    if count < 2:
        return Interval(mean, mean, mean, count)
    drawn = bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // count),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = drawn.confidence_interval
    return Interval(mean, float(low), float(high), count)
