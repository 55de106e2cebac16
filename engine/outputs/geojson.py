"""Write a run's locations as GeoJSON (RFC 7946), for web maps and GitHub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from combicam.engine.outputs.cell_outlines import cell_outline
from combicam.engine.outputs.geo_rows import placed_rows, placed_schema
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import location


def write_geojson(run: str | Path, output: str | Path, cells: bool = False) -> int:
    """Write the rows that have a location as a ``FeatureCollection``, one per line.

    Coordinates are longitude, latitude (WGS 84), as RFC 7946 requires; there is no ``crs``. A
    feature's ``id`` is the image's; its properties are the other columns except heatmaps, and
    ``photo``, a link.

    Args:
        run: run directory, finished or not.
        output: file, written atomically.
        cells: write S2 cells as polygons; else points, ``lon`` and ``lat`` of the run.

    Returns:
        The number of features.

    Raises:
        RunError: not a run directory, or one without a committed shard.
        ValueError: a run without locations, or without the requested S2 cells, or a folder as
            output.
    """
    opened, output = open_run(run), location(output)
    known = placed_schema(opened).names  # fails early without locations
    if cells and "s2_token" not in known:
        raise ValueError(
            f"convert: expected a run whose classes have S2 cells, got {opened.path} without; "
            "write points instead"
        )
    count = 0
    with new_file(output, "convert") as path, path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for feature in _features(opened, cells):
            file.write((",\n" if count else "\n") + feature)
            count += 1
        file.write("\n]}\n")
    return count


def _features(opened: OpenRun, cells: bool) -> Iterator[str]:
    for batch in placed_rows(opened):
        for row in batch.to_pylist():
            yield json.dumps(_feature(row, cells), ensure_ascii=False, allow_nan=False)


def _feature(row: dict[str, Any], cells: bool) -> dict[str, Any]:
    point = {"type": "Point", "coordinates": [row["lon"], row["lat"]]}
    left_out = {"id"} if cells else {"id", "lat", "lon"}
    return {
        "type": "Feature",
        "id": row["id"],
        "geometry": cell_outline(row["s2_token"]) if cells else point,
        "properties": {name: v for name, v in row.items() if name not in left_out},
    }
