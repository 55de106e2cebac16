"""Make the outlines of land and countries of the report's map: ``engine/report/page/world.json``.

    python tools/world_outlines.py package/countries-110m.json

makes them from the npm package world-atlas 2.0.2, which is Natural Earth 4.1 at 1:110 million as
TopoJSON (`npm pack world-atlas` fetches it). Natural Earth is in the public domain; world-atlas is
under the ISC licence: ``engine/report/page/world.LICENSE``.

TopoJSON keeps every boundary once, as an arc: quantised positions as differences, which ``scale``
and ``translate`` turn into degrees. Rings are lists of arcs, ``~i`` is arc i backwards. What the
page gets are land's rings, cut at the date line, and the arcs between two countries, as tenths of
degrees: the first position, then differences.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

_UNITS = 10  # per degree
_HALF = 180 * _UNITS
_POLE = 90 * _UNITS

Line = list[tuple[int, int]]


def outlines(topology: dict[str, Any]) -> dict[str, list[list[int]]]:
    """Land and borders as differences.

    Args:
        topology: TopoJSON with the objects ``land`` and ``countries``.
    """
    arcs = _arcs(topology)
    rings = [
        piece
        for geometry in topology["objects"]["land"]["geometries"]
        for polygon in _polygons(geometry)
        for ring in polygon
        for piece in _cut(_joined(ring, arcs))
    ]
    used: Counter[int] = Counter()
    for country in topology["objects"]["countries"]["geometries"]:
        indices = {
            i if i >= 0 else ~i for polygon in _polygons(country) for ring in polygon for i in ring
        }
        used.update(indices)
    borders = [arcs[i] for i, countries in sorted(used.items()) if countries > 1]
    return {
        "land": [_differences(ring) for ring in rings if len(set(ring)) > 2],
        "borders": [_differences(line) for line in borders if len(set(line)) > 1],
    }


def _arcs(topology: dict[str, Any]) -> list[Line]:
    """Arcs in tenths of degrees, without positions that repeat the one before."""
    scale, translate = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = []
    for arc in topology["arcs"]:
        x = y = 0
        line: Line = []
        for dx, dy in arc:
            x, y = x + dx, y + dy
            degrees = (x * scale[0] + translate[0], y * scale[1] + translate[1])
            point = (round(degrees[0] * _UNITS), round(degrees[1] * _UNITS))
            if not line or line[-1] != point:
                line.append(point)
        arcs.append(line)
    return arcs


def _polygons(geometry: dict[str, Any]) -> list[list[list[int]]]:
    if geometry["type"] == "Polygon":
        return [geometry["arcs"]]
    polygons: list[list[list[int]]] = geometry["arcs"]
    return polygons


def _joined(ring: list[int], arcs: list[Line]) -> Line:
    line: Line = []
    for index in ring:
        arc = arcs[index] if index >= 0 else arcs[~index][::-1]
        line += arc[1:] if line else arc
    return line


def _cut(ring: Line) -> list[Line]:
    """A ring that may cross the date line as rings that do not."""
    line = [ring[0]]
    for x, y in ring[1:]:
        # Where a ring jumps around the world it goes on beyond the date line.
        line.append((x + round((line[-1][0] - x) / (2 * _HALF)) * 2 * _HALF, y))
    if abs(line[-1][0] - line[0][0]) > _HALF:  # around the pole: Antarctica
        line += [(line[-1][0], -_POLE), (line[0][0], -_POLE), line[0]]
    found = []
    for shift in (-2 * _HALF, 0, 2 * _HALF):
        moved = [(x + shift, y) for x, y in line]
        piece = _one_side(_one_side(moved, -_HALF, 1), _HALF, -1)
        if len(set(piece)) > 2 and len({x for x, _ in piece}) > 1:
            found.append(piece)
    return found


def _one_side(ring: Line, edge: int, sign: int) -> Line:
    """What of a closed ring lies east (1) or west (-1) of a meridian: Sutherland and Hodgman."""
    kept: Line = []
    for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
        if sign * (x0 - edge) >= 0:
            kept.append((x0, y0))
        if (x0 - edge) * (x1 - edge) < 0:
            kept.append((edge, round(y0 + (y1 - y0) * (edge - x0) / (x1 - x0))))
    return kept


def _differences(line: Line) -> list[int]:
    flat = [*line[0]]
    for (x0, y0), (x1, y1) in pairwise(line):
        flat += [x1 - x0, y1 - y0]
    return flat


def main(source: Path) -> None:
    """Write ``world.json`` from a TopoJSON file."""
    found = outlines(json.loads(source.read_text(encoding="utf-8")))
    path = Path(__file__).parents[1] / "engine" / "report" / "page" / "world.json"
    path.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
