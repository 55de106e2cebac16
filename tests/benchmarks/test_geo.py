"""The benchmark of many cells: tiny, with every row checked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.geo import DENSITY, NARROW, GeoBenchmark, geo, geo_table, head_share
from benchmarks.harness import Result
from combicam.export.models.adapters.efficientnet import EfficientNet, Stage


@pytest.mark.slow
def test_one_round() -> None:
    config = GeoBenchmark(batch=1, size=32, cells=500, density_images=3, rounds=1, threads=1)
    small = EfficientNet((Stage(2, 3, 1, 1, 8),), stem=8, head=16, size=32)
    rows = geo(config, lambda line: None, small)
    assert [row.name for row in rows] == [NARROW, "joint graph, 500 cells", DENSITY]
    assert [row.error for row in rows] == [None] * 3
    assert rows[1].params["limit"] == 0.10 and rows[1].params["cells"] == 500
    assert "The wide head:" in geo_table(rows)


def test_the_share_is_a_median_over_rounds() -> None:
    narrow = Result("a", {}, seconds=[1.0, 9.0, 1.0])
    wide = Result("b", {}, seconds=[2.0, 10.0, 1.25])
    assert head_share(narrow, wide) == pytest.approx(0.2)
    wide = Result("b", {"head_share": 0.2, "limit": 0.1}, p20=1, p50=1, p80=1, images_per_s=1)
    wide.max_abs_err = 0
    assert "20.0% of the joint graph, above 10%" in geo_table([wide])
    assert "failed: E" in geo_table([Result("c", {}, error="E")])


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="device in"):
        GeoBenchmark(device="tpu")
    with pytest.raises(ValueError, match="cells >= 3"):
        GeoBenchmark(cells=2)
