"""Bootstrap intervals of means."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from combicam.engine.evaluation.bootstrap import Interval, intervals


def test_intervals_are_those_of_a_normal_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 1))
    (found,) = intervals(values, resamples=4000)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.high - found.mean == pytest.approx(half, rel=0.12)
    assert found.mean - found.low == pytest.approx(half, rel=0.12)
    assert found.images == 400


def test_images_without_a_value_are_not_counted() -> None:
    values = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    known, unknown = intervals(values)
    assert (known.mean, known.images, unknown.images) == (2.0, 2, 0)
    assert 1.0 <= known.low <= known.high <= 3.0
    assert np.isnan(unknown.mean)
    assert intervals(values[1:2, :1]) == [Interval(3.0, 3.0, 3.0, 1)]


def test_draws_take_bounded_memory() -> None:
    """1000 draws of 40,000 images are 320 MB; at most a third of that is held at once."""
    values = np.random.default_rng(4).normal(size=(40_000, 1))
    tracemalloc.start()
    try:
        intervals(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120e6


def test_columns_share_their_draws() -> None:
    """A difference that is the same for every image has no spread, however the images vary."""
    noise = np.random.default_rng(2).normal(0, 5, 50)
    a, b, difference = intervals(np.stack([noise, noise + 1, noise - (noise + 1)], 1))
    assert difference.low == pytest.approx(-1) and difference.high == pytest.approx(-1)
    assert b.low - a.low == pytest.approx(1)
    assert intervals(noise[:, None]) == intervals(noise[:, None])
