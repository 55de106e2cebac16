"""Polygons of S2 cells against the numbers of places: a place lies in the cell that holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from combicam.engine.outputs.cell_outlines import cell_outline
from combicam.export.classes import s2


def rings(token: str) -> list[NDArray[np.float64]]:
    geometry = cell_outline(token)
    polygons = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    return [np.array(polygon[0]) for polygon in polygons]


def holds(ring: NDArray[np.float64], lon: Any, lat: Any) -> NDArray[np.bool_]:
    """Which places a planar polygon holds: an odd number of its edges lie to the east."""
    lon, lat = np.asarray(lon)[:, None], np.asarray(lat)[:, None]
    (x, y), (to_x, to_y) = ring[:-1].T, ring[1:].T
    spans = (y > lat) != (to_y > lat)
    with np.errstate(divide="ignore", invalid="ignore"):
        east = x + (lat - y) / (to_y - y) * (to_x - x) > lon
    return (spans & east).sum(1) % 2 == 1


def everywhere(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(1)
    return rng.uniform(-180, 180, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_large_cells_cover_the_earth_once(level: int) -> None:
    lon, lat = everywhere(4_000)
    ids = s2.ancestors(s2.leaves(lat, lon), level)
    found = np.zeros(len(lon), int)
    right = np.zeros(len(lon), bool)
    for cell in np.unique(ids):
        (token,) = s2.tokens(np.array([cell]))
        inside = np.sum([holds(ring, lon, lat) for ring in rings(token)], 0)
        found += inside
        right |= (inside == 1) & (ids == cell)
    # A straight line between points of an edge is not quite the great circle.
    assert (found == 1).all() and right.mean() > 0.997


@pytest.mark.parametrize("level", [5, 6, 9, 14, 20, 27])
def test_small_cells_hold_their_places(level: int) -> None:
    lon, lat = everywhere(60)
    rng = np.random.default_rng(2)
    for cell in s2.ancestors(s2.leaves(lat, lon), level):
        (token,) = s2.tokens(np.array([cell]))
        (ring,) = rings(token)
        (south, north), (west, east) = ((a.min(), a.max()) for a in (ring[:, 1], ring[:, 0]))
        lons = rng.uniform(west - 0.2 * (east - west), east + 0.2 * (east - west), 200)
        lats = rng.uniform(south - 0.2 * (north - south), north + 0.2 * (north - south), 200)
        known = (np.abs(lons) <= 180) & (np.abs(lats) <= 90)
        lons, lats = lons[known], lats[known]
        expected = s2.ancestors(s2.leaves(lats, lons), level) == cell
        assert (holds(ring, lons, lats) == expected).mean() > 0.97, token
        assert expected.any()


@pytest.mark.parametrize("token", ["1", "5", "7", "b", "04", "54", "5c", "4c", "b4", "7c", "89c25"])
def test_rings_are_those_of_rfc_7946(token: str) -> None:
    for ring in rings(token):
        assert (ring[0] == ring[-1]).all() and (np.abs(ring) <= [180, 90]).all()
        assert (np.abs(np.diff(ring[:, 0])) <= 90 + 1e-9).all()  # never around the Earth
        (x, y), (to_x, to_y) = ring[:-1].T, ring[1:].T
        assert (x * to_y - to_x * y).sum() > 0  # counterclockwise


def test_tokens_of_no_cell() -> None:
    with pytest.raises(ValueError, match="which no S2 cell has"):
        cell_outline("2")
