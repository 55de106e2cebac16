"""Measure how far a run's predicted locations are from where the images were taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from combicam.engine.geo.accuracy import Accuracy, measure
from combicam.engine.geo.distance import distance_km
from combicam.engine.inputs.ground_truth import read_truth, refuse_strangers
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.engine.shards.status import OK
from combicam.engine.storage.paths import location


def accuracy(run: str | Path | OpenRun, truth: str | Path | None = None) -> Accuracy | None:
    """Measure how far a run's predicted locations are from the ground truth, also during the run.

    Args:
        run: run directory, or an open run.
        truth: CSV or Parquet file with the columns id, latitude and longitude; default: the
            ground truth that the run was given.

    Returns:
        The accuracy; None if no located photo has ground truth.

    Raises:
        RunError: not a run directory, or one without a committed shard.
        ValueError: a run without locations, or ground truth that is invalid or of other images.
        FileNotFoundError: a missing file.
    """
    opened = run if isinstance(run, OpenRun) else open_run(run)
    names = opened.dataset.schema.names
    if "lat" not in names:
        raise ValueError(
            f"accuracy: expected a run whose classes have locations, got {opened.path} without; "
            "run it with --classes"
        )
    if truth is None:
        return _known(opened) if "error_km" in names else None
    places = read_truth(location(truth))
    pairs: list[tuple[Any, ...]] = []
    failed, first, is_known = 0, None, False
    for row in _rows(opened, ["id", "status", "lat", "lon"]):
        first = row["id"] if first is None else first
        is_known |= row["id"] in places
        place = places.get(row["id"], (None, None))
        if place[0] is None:
            continue
        if row["status"] == OK:
            pairs.append((row["lat"], row["lon"], *place))
        else:
            failed += 1
    if not is_known:
        refuse_strangers(first, places)
    return measure(distance_km(*np.asarray(pairs, np.float64).reshape(-1, 4).T), failed)


def _known(opened: OpenRun) -> Accuracy | None:
    table = opened.table(["true_lat", "error_km"], where=pc.field("true_lat").is_valid())
    errors: NDArray[np.float64] = table.column("error_km").drop_null().to_numpy()
    return measure(errors, table.num_rows - len(errors))


def _rows(opened: OpenRun, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in opened.dataset.to_batches(columns=columns):
        yield from batch.to_pylist()
