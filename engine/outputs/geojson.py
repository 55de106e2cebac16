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
    """Write the rows that have a place as a ``FeatureCollection``, one a line.

    Coordinates are longitude, then latitude, WGS 84, as RFC 7946 has it; there is no ``crs``. A
    feature's ``id`` is the photo's, its properties are the other columns without heatmaps, and
    ``photo``, a link.

    Args:
        run: run directory; also while the run goes on.
        output: file to write; it appears complete or not at all.
        cells: the S2 cells as polygons; else points, ``lon`` and ``lat`` of the run.

    Returns:
        How many features were written.

    Raises:
        RunError: no run directory, or one without a committed shard.
        ValueError: a run without places, or without S2 cells where they are asked for, or a folder
            as output.
    """
    opened, output = open_run(run), location(output)
    known = placed_schema(opened).names  # refuses a run without places before anything is written
    if cells and "s2_token" not in known:
        raise ValueError(
            f"convert: expected a run whose classes have S2 cells, got {opened.path} without; "
            "write points"
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
