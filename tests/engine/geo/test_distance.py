"""Great-circle distances: those of the ellipsoid, and what holds on any sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from combicam.engine.geo.distance import distance_km
from combicam.export.classes.places import EARTH_RADIUS_KM

HALF = math.pi * EARTH_RADIUS_KM
AIRPORTS = {  # latitude, longitude
    "LHR": (51.4706, -0.461941),
    "JFK": (40.639801, -73.7789),
    "SIN": (1.35019, 103.994003),
    "EWR": (40.692501, -74.168701),
    "SYD": (-33.946098, 151.177002),
    "LAX": (33.942501, -118.407997),
}
places = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


@pytest.mark.parametrize(
    "pair, km",
    [("LHR JFK", 5554.54), ("SIN EWR", 15344.52), ("SYD LAX", 12050.71), ("LHR SIN", 10887.92)],
)
def test_geodesics_of_the_ellipsoid(pair: str, km: float) -> None:
    """Of WGS 84, by PROJ's geodesics; a sphere of the mean radius is at most 0.56 % off."""
    here, there = (AIRPORTS[name] for name in pair.split())
    assert distance_km(*here, *there) == pytest.approx(km, rel=0.0057)


@pytest.mark.parametrize(
    "here, there, km",
    [
        ((0, 0), (0, 180), HALF),
        ((37.2, 12.5), (-37.2, -167.5), HALF),
        ((90, 0), (-90, 77), HALF),
        ((90, 20), (90, -130), 0),  # the pole has every longitude
        ((90, 20), (0, -130), HALF / 2),
        ((0, 179.5), (0, -179.5), HALF / 180),
        ((-17, 180), (-17, -180), 0),
        ((45, 10), (45 + 1e-9, 10), HALF / 180 * 1e-9),  # 0.1 mm
    ],
)
def test_places_where_formulas_fail(
    here: tuple[float, float], there: tuple[float, float], km: float
) -> None:
    assert distance_km(*here, *there) == pytest.approx(km, rel=1e-6, abs=1e-9)


def test_near_antipodes_are_exact() -> None:
    """A haversine of float64 is off by 100 m here."""
    off = 1e-3  # degrees
    assert HALF - distance_km(0, 0, off, 180) == pytest.approx(HALF / 180 * off, rel=1e-6)


@given(places, places, places)
def test_it_is_a_metric(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]
) -> None:
    ab, ba = distance_km(*a, *b), distance_km(*b, *a)
    assert 0 <= ab <= HALF * (1 + 1e-15) and ab == pytest.approx(ba, abs=1e-6)
    assert ab <= distance_km(*a, *c) + distance_km(*c, *b) + 1e-6


def test_arguments_are_broadcast() -> None:
    found = distance_km(np.array([[0.0], [10.0]]), 0.0, np.zeros(3), np.array([0.0, 1.0, np.nan]))
    assert found.shape == (2, 3) and found.dtype == np.float64
    assert found[0, 0] == 0 and np.isnan(found[:, 2]).all()
    assert found[0, 1] == pytest.approx(HALF / 180)
