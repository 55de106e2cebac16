"""Select the rows of a run that have a location, without their heatmaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from combicam.engine.run.open_run import OpenRun

_LEFT_OUT = ("heatmap", "layer_", "error", "low", "high", "flat", "decoder", "status")


def placed_schema(opened: OpenRun) -> Any:
    """Columns of :func:`placed_rows`.

    Raises:
        ValueError: a run without locations.
    """
    schema = opened.dataset.schema
    if "lat" not in schema.names:
        raise ValueError(
            f"convert: expected a run whose classes have locations, got {opened.path} without; "
            "run it with --classes"
        )
    kept = [f for f in schema if f.name == "error_km" or not f.name.startswith(_LEFT_OUT)]
    return pa.schema([*kept, pa.field("photo", pa.string())])


def placed_rows(opened: OpenRun) -> Iterator[Any]:
    """Record batches of the committed rows that have a location, in order.

    They have the run's columns, and ``photo``: a link to the image's file, or to its tar.
    """
    schema = placed_schema(opened)
    columns = schema.names[:-1]
    for batch in opened.dataset.to_batches(columns=columns, filter=pc.field("lat").is_valid()):
        if batch.num_rows:
            links = pa.array([photo_url(uri) for uri in batch.column("uri").to_pylist()])
            yield pa.RecordBatch.from_arrays([*batch.columns, links], schema=schema)


def photo_url(uri: str) -> str:
    """A run's ``uri`` as a link: paths become ``file://…``."""
    return uri if "://" in uri else Path(uri).as_uri()
