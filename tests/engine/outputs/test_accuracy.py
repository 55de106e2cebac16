"""Accuracy: shares, intervals, and what does not count."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from combicam.engine.geo.accuracy import Accuracy, measure


def test_shares_and_median_by_hand() -> None:
    found = measure([0, 1, 1.001, 24, 300, 800, 2500, 9000], failed=3)
    assert found is not None and found.images == 8 and found.failed == 3
    assert [row.count for row in found.within] == [2, 4, 4, 5, 7]
    assert [row.share for row in found.within] == [0.25, 0.5, 0.5, 0.625, 0.875]
    assert found.median_km == 162 and found.mean_km == pytest.approx(12626.001 / 8)
    assert found.median_low_km == 0 and found.median_high_km == 2500 + 6500
    assert found.lines()[1] == ("within 25 km", "50.0% (21.5% to 78.5%)")
    assert "8 photos, 3 not located" in found.lines()[-1][1]


@pytest.mark.parametrize(
    "count, total, low, high",
    [  # 0 of n: z²/(n + z²)
        (15, 50, 0.1910, 0.4375),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson(count: int, total: int, low: float, high: float) -> None:
    found = measure([0.5] * count + [2.0] * (total - count))
    assert found is not None
    row = found.within[0]
    assert (row.low, row.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_intervals_cover_the_truth_in_19_of_20_samples() -> None:
    random = np.random.default_rng(0)
    share, median = 1 - math.exp(-25 / 100), 100 * math.log(2)  # of an exponential, mean 100 km
    covered = np.zeros(2)
    for _ in range(1000):
        found = measure(random.exponential(100, 60))
        assert found is not None
        row = found.within[1]
        covered += (
            row.low <= share <= row.high,
            (found.median_low_km <= median <= found.median_high_km),
        )
    assert (covered >= 930).all() and (covered <= 990).all()


def test_json_keeps_everything() -> None:
    few = measure([5.0])
    assert few is not None and few.median_high_km == math.inf
    text = json.dumps(few.to_dict(), allow_nan=False)
    assert Accuracy.from_dict(json.loads(text)) == few


def test_nothing_to_measure() -> None:
    assert measure([], failed=7) is None
    with pytest.raises(ValueError, match="errors >= 0"):
        measure([1.0, np.nan])
    with pytest.raises(ValueError, match="errors >= 0"):
        measure([-1.0])
