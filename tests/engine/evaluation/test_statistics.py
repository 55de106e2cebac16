"""Rank correlation and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from combicam.engine.evaluation.bootstrap import intervals
from combicam.engine.evaluation.rank_correlation import rank_correlation


def test_rank_correlation_is_spearmans_with_ties() -> None:
    one, other = torch.rand(4, 9, 5), (torch.rand(4, 9, 5) * 4).floor()
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-6)


def test_rank_correlation_of_what_grows_and_falls() -> None:
    maps = torch.rand(2, 6, 6)
    torch.testing.assert_close(rank_correlation(maps, maps.exp()), torch.ones(2))
    torch.testing.assert_close(rank_correlation(maps, -maps), -torch.ones(2))
    assert rank_correlation(maps, torch.zeros(2, 6, 6)).isnan().all()


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


def test_columns_share_their_draws() -> None:
    """A difference that is the same for every image has no spread, however the images vary."""
    noise = np.random.default_rng(2).normal(0, 5, 50)
    a, b, difference = intervals(np.stack([noise, noise + 1, noise - (noise + 1)], 1))
    assert difference.low == pytest.approx(-1) and difference.high == pytest.approx(-1)
    assert b.low - a.low == pytest.approx(1)
    assert intervals(noise[:, None]) == intervals(noise[:, None])
