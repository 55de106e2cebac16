"""TopoJSON worked by hand, and the outlines that are shipped."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from typing import Any

from tools.world_outlines import outlines


def degrees(flat: list[int]) -> list[tuple[float, float]]:
    points, x, y = [], 0, 0
    for dx, dy in zip(flat[::2], flat[1::2], strict=True):
        x, y = x + dx, y + dy
        points.append((x / 10, y / 10))
    return points


def topology(arcs: list[Any], land: list[Any], countries: list[Any]) -> dict[str, Any]:
    return {
        "transform": {"scale": [0.5, 0.5], "translate": [-180, -90]},
        "arcs": arcs,
        "objects": {
            "land": {"geometries": [{"type": "MultiPolygon", "arcs": land}]},
            "countries": {"geometries": [{"type": "Polygon", "arcs": c} for c in countries]},
        },
    }


def test_two_countries_share_a_border() -> None:
    # Units of half a degree from (-180, -90): a square of 10 degrees, cut in the middle.
    border = [[370, 180], [0, 20]]  # from (5, 0) up to (5, 10)
    west = [[370, 200], [-10, 0], [0, -20], [10, 0]]  # (5, 10), (0, 10), (0, 0), (5, 0)
    east = [[370, 180], [10, 0], [0, 20], [-10, 0]]  # (5, 0), (10, 0), (10, 10), (5, 10)
    found = outlines(
        topology([border, west, east], land=[[[1, 2]]], countries=[[[0, 1]], [[2, ~0]]])
    )
    assert [degrees(line) for line in found["borders"]] == [[(5, 0), (5, 10)]]
    (ring,) = [degrees(ring) for ring in found["land"]]
    assert set(ring) == {(5, 10), (0, 10), (0, 0), (5, 0), (10, 0), (10, 10)}


def test_rings_are_cut_at_the_date_line() -> None:
    # From 170 east to 170 west, 10 degrees high: jumps from 180 to -180.
    ring = [[700, 180], [10, 0], [-700, 0], [0, 20], [700, 0], [-10, 0], [0, -20]]
    found = outlines(topology([ring], land=[[[0]]], countries=[]))
    pieces = [degrees(piece) for piece in found["land"]]
    assert len(pieces) == 2
    spans = sorted((min(x for x, _ in p), max(x for x, _ in p)) for p in pieces)
    assert spans == [(-180, -175), (170, 180)]
    for piece in pieces:
        assert {y for _, y in piece} == {0, 10}
        assert all(abs(a[0] - b[0]) <= 180 for a, b in pairwise(piece))


def test_land_around_the_pole_is_closed_there() -> None:
    coast = [[0, 20], [240, 10], [240, -10], [240, 0]]  # all around, at about 80 south
    found = outlines(topology([coast], land=[[[0]]], countries=[]))
    points = [point for ring in found["land"] for point in degrees(ring)]
    assert {(-180, -90), (180, -90)} <= set(points)


def test_shipped_outlines_are_of_this_planet() -> None:
    page = files("combicam.engine.report").joinpath("page")
    world = json.loads(page.joinpath("world.json").read_text())
    assert "public domain" in page.joinpath("world.LICENSE").read_text()
    rings = [degrees(ring) for ring in world["land"]]
    for ring in rings:
        assert all(-180 <= x <= 180 and -90 <= y <= 90 for x, y in ring)
        # No edge goes around the world, but for Antarctica's along the pole.
        assert all(abs(a[0] - b[0]) <= 180 or a[1] == b[1] == -90 for a, b in pairwise(ring))

    def is_land(lon: float, lat: float) -> bool:
        crossings = 0
        for ring in rings:
            for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
                if (y0 > lat) != (y1 > lat) and lon < x0 + (lat - y0) / (y1 - y0) * (x1 - x0):
                    crossings += 1
        return crossings % 2 == 1

    for lon, lat in ((2.3, 48.9), (-99.1, 19.4), (133, -25), (100, 66), (-175, 67), (0, -85)):
        assert is_land(lon + 0.01, lat + 0.01), (lon, lat)
    for lon, lat in ((-30, 40), (0, 0), (-150, -20), (80, -20), (175, 0), (0, 75)):
        assert not is_land(lon + 0.01, lat + 0.01), (lon, lat)
