"""A run's places as GeoJSON (RFC 7946): for web maps and GitHub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from combicam.engine.atomic import commit, temporary_path
from combicam.engine.geo.placed_rows import placed_rows, placed_schema
from combicam.engine.reading import OpenRun, open_run

_IN_GEOMETRY = ("id", "lat", "lon")


def write_geojson(run: str | Path, output: str | Path) -> int:
    """Write the rows that have a place as a ``FeatureCollection`` of points, one a line.

    Coordinates are longitude, then latitude, WGS 84, as RFC 7946 has it; there is no ``crs``. A
    feature's ``id`` is the photo's, its properties are the other columns without heatmaps, and
    ``photo``, a link.

    Args:
        run: run directory; also while the run goes on.
        output: file to write; it appears complete or not at all.

    Returns:
        How many features were written.

    Raises:
        RunError: no run directory, or one without a committed shard.
        ValueError: a run without places.
    """
    opened, output = open_run(run), Path(output)
    placed_schema(opened)  # refuses a run without places before anything is written
    output.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with temporary_path(output).open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for feature in _features(opened):
            file.write((",\n" if count else "\n") + feature)
            count += 1
        file.write("\n]}\n")
    commit(output)
    return count


def _features(opened: OpenRun) -> Iterator[str]:
    for batch in placed_rows(opened):
        for row in batch.to_pylist():
            yield json.dumps(_feature(row), ensure_ascii=False, allow_nan=False)


def _feature(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "id": row["id"],
        "geometry": {"type": "Point", "coordinates": [row["lon"], row["lat"]]},
        "properties": {name: v for name, v in row.items() if name not in _IN_GEOMETRY},
    }
