"""Compute means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

_DRAWN_AT_ONCE = 4_000_000  # values, 32 MB


@dataclass(frozen=True)
class Interval:
    """A mean over images, its 95 % bootstrap interval, and the number of images."""

    mean: float
    low: float
    high: float
    images: int


def intervals(columns: NDArray[np.float64], resamples: int = 1000, seed: int = 0) -> list[Interval]:
    """Mean and percentile interval of every column; images are resampled with replacement.

    Columns with values for the same images share the resamples. For the paired interval of the
    difference of two maps, pass the column of differences.

    Args:
        columns: [N,M], N images; NaN where an image has no value.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
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
