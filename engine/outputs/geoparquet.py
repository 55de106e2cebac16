"""Write a run's locations as GeoParquet 1.1, for QGIS, GeoPandas, DuckDB and BigQuery."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from combicam.engine.outputs.geo_rows import placed_rows, placed_schema
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import location

_GROUP_ROWS = 65_536
# Well-known binary: little-endian, geometry type 1 (point), then x and y.
_POINT = np.dtype([("order", "u1"), ("type", "<u4"), ("x", "<f8"), ("y", "<f8")])


def write_geoparquet(run: str | Path, output: str | Path) -> int:
    """Write the rows that have a location, with the point in the column ``geometry``.

    Coordinates are longitude and latitude, WGS 84 (OGC:CRS84, GeoParquet's default). Rows are
    streamed; heatmaps are left out.

    Args:
        run: run directory, finished or not.
        output: file, written atomically.

    Returns:
        The number of rows.

    Raises:
        RunError: not a run directory, or one without a committed shard.
        ValueError: a run without locations, or a folder as output.

    Source: GeoParquet 1.1.0, https://geoparquet.org/releases/v1.1.0/
    """
    opened, output = open_run(run), location(output)
    geometry = pa.field("geometry", pa.binary(), nullable=False)
    schema = placed_schema(opened).append(geometry)
    metadata = {"geo": json.dumps(_metadata(opened))}
    schema = schema.with_metadata(metadata)
    rows = 0
    with (
        new_file(output, "convert") as path,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for table in _groups(opened):
            points = wkb_points(*(table.column(name).to_numpy() for name in ("lon", "lat")))
            writer.write_table(table.append_column(geometry, points).replace_schema_metadata())
            rows += table.num_rows
    return rows


def wkb_points(x: NDArray[np.float64], y: NDArray[np.float64]) -> Any:
    """Points as a pyarrow array of well-known binary."""
    points = np.empty(len(x), _POINT)
    points["order"], points["type"], points["x"], points["y"] = 1, 1, x, y
    buffers = [None, pa.py_buffer(points.tobytes())]
    fixed = pa.Array.from_buffers(pa.binary(_POINT.itemsize), len(x), buffers)
    return fixed.cast(pa.binary())


def _groups(opened: OpenRun) -> Iterator[Any]:
    """Tables of about one row group each; the run's own batches are smaller."""
    waiting: list[Any] = []
    for batch in chain(placed_rows(opened), [None]):
        if batch is not None:
            waiting.append(batch)
        if waiting and (batch is None or sum(b.num_rows for b in waiting) >= _GROUP_ROWS):
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []


def _metadata(opened: OpenRun) -> dict[str, Any]:
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Point"]}
    table = opened.table(["lon", "lat"], where=pc.field("lat").is_valid())
    if table.num_rows:
        (west, east), (south, north) = (
            pc.min_max(table.column(name)).as_py().values() for name in ("lon", "lat")
        )
        column["bbox"] = [west, south, east, north]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
