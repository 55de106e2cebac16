"""Draw S2 cells as polygons of longitudes and latitudes, for GeoJSON.

A face of S2's cube has the axes n (through its centre), U and V: a point is n + u U + v V, with
u = (4 s² - 1) / 3 for s >= 1/2, and (1 - 4 (1 - s)²) / 3 below. A cell of level L is a square of
side 2^-L in (s, t). Its edges are great circles.

Source: https://s2geometry.io/devguide/s2cell_hierarchy; RFC 7946, sections 3.1.6 and 3.1.9.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from combicam.export.classes import s2
from combicam.export.classes.places import unit_vectors

# n, U, V of each face.
_AXES = np.array(
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0, 1, 0), (-1, 0, 0), (0, 0, 1)],
        [(0, 0, 1), (-1, 0, 0), (0, -1, 0)],
        [(-1, 0, 0), (0, 0, -1), (0, -1, 0)],
        [(0, -1, 0), (0, 0, -1), (1, 0, 0)],
        [(0, 0, -1), (0, 1, 0), (1, 0, 0)],
    ],
    np.float64,
)
_STRAIGHT = 9  # from this level on, edges are practically straight on a map
_MOST_POINTS = 32  # per edge


@lru_cache(4096)
def cell_outline(token: str) -> dict[str, Any]:
    """The geometry of a cell: ``Polygon``, or ``MultiPolygon`` for a face of the cube.

    Faces cross the 180th meridian or contain a pole. Their quarters and smaller cells do not:
    cell edges run along the meridian and meet at the pole.

    Args:
        token: of the cell.

    Raises:
        ValueError: not the token of a cell.
    """
    cell = s2.cell_id(token)
    level = int(s2.levels(np.array([cell], np.uint64))[0])
    if level:
        return {"type": "Polygon", "coordinates": [_ring(cell, level)]}
    step = (cell & -cell) >> 2
    quarters = [cell + k * step for k in (-3, -1, 1, 3)]
    return {"type": "MultiPolygon", "coordinates": [[_ring(child, 1)] for child in quarters]}


def _ring(cell: int, level: int) -> list[tuple[float, float]]:
    """Longitude and latitude of points around a cell of level 1 or more, closed, to the left."""
    n, *axes = _AXES[cell >> 61]
    (lat,), (lon,) = s2.centers(np.array([cell], np.uint64))
    middle = unit_vectors(lat, lon)
    column, row = (int(_to_st(middle @ axis / (middle @ n)) * 2**level) for axis in axes)
    count = min(2 ** max(0, _STRAIGHT - level), _MOST_POINTS)
    along, at_0, at_1 = np.arange(count) / count, np.zeros(count), np.ones(count)
    s = column + np.concatenate([along, at_1, 1 - along, at_0])
    t = row + np.concatenate([at_0, along, at_1, 1 - along])
    u, v = _to_uv(s / 2**level)[:, None], _to_uv(t / 2**level)[:, None]
    x, y, z = (n + u * axes[0] + v * axes[1]).T
    lats = np.degrees(np.arctan2(z, np.hypot(x, y)))
    # The meridian is 180 for cells to its west, and -180 for cells to its east.
    lons = lon + (np.degrees(np.arctan2(y, x)) - lon + 180) % 360 - 180
    points = list(zip(lons.clip(-180, 180).tolist(), lats.tolist(), strict=True))
    ring: list[tuple[float, float]] = []
    for i, point in enumerate(points):
        # A pole has every longitude: on a map the edge runs from one neighbour's to the other's.
        at_pole = abs(point[1]) > 90 - 1e-9
        around = (points[i - 1][0], points[(i + 1) % len(points)][0])
        ring += [(east, point[1]) for east in around] if at_pole else [point]
    return [*ring, ring[0]]


def _to_uv(s: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(s >= 0.5, 4 * s * s - 1, 1 - 4 * (1 - s) ** 2) / 3


def _to_st(u: float) -> float:
    root = float(np.sqrt(1 + 3 * abs(u))) / 2
    return root if u >= 0 else 1 - root
