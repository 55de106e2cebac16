"""Write a run as a FiftyOne dataset: images, predictions, locations and heatmaps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from combicam.engine.images.resize import visible_box
from combicam.engine.inputs.entry import uri_path
from combicam.engine.run.open_run import OpenRun, open_run
from combicam.errors import RunError
from combicam.export.preprocess import Preprocess
from combicam.requirements import require


def write_fiftyone(run: str | Path, name: str) -> int:
    """Write a run as a persistent FiftyOne dataset; needs FiftyOne's database.

    Args:
        run: run directory.
        name: of the new dataset.

    Returns:
        The number of samples.

    Raises:
        MissingExtra, RunError: see :func:`fiftyone_samples`.
        ValueError: FiftyOne already has a dataset with this name.
    """
    fo = require("fiftyone", extra="fiftyone", operation="fiftyone")
    samples = fiftyone_samples(run)
    dataset = fo.Dataset(name, persistent=True)
    dataset.add_samples(samples)
    return len(dataset)


def fiftyone_samples(run: str | Path) -> Iterator[Any]:
    """A ``fiftyone.Sample`` for every committed row whose status is ok; needs no database.

    Fields, for each target ``k`` = 0, 1, …: ``prediction<k>`` (``Classification``: the class's
    name if the row has one, else its number) and ``heatmap<k>`` (``Heatmap``, uint8 on the stored
    grid, over the whole image; 0 where the model did not see it). Also ``run_id``, and
    ``location`` (``GeoLocation``) if the run has locations.

    Args:
        run: run directory.

    Raises:
        MissingExtra: FiftyOne is not installed.
        RunError: no committed shards, or images in tars, which FiftyOne cannot show.
    """
    fo = require("fiftyone", extra="fiftyone", operation="fiftyone")
    opened = open_run(run)
    first = opened.table(["id", "uri"]).slice(0, 1).to_pylist()[0]
    if "::" in first["id"] and first["uri"].endswith(".tar"):
        raise RunError(
            f"fiftyone: expected images as files, got {first['id']} in a tar; extract the "
            "tars and run over the folder, or convert to WebDataset"
        )
    return _samples(fo, opened)


def _samples(fo: Any, opened: OpenRun) -> Iterator[Any]:
    preprocess = opened.preprocess
    for index in opened.shards:
        shard = opened.shard(index)
        rows = shard.table.to_pylist()
        for i in map(int, np.flatnonzero(shard.ok)):
            row, fields = rows[i], {}
            photo = (row["width"], row["height"])
            for k, heatmap in enumerate(shard.heatmaps[i]):
                fields[f"prediction{k}"] = fo.Classification(
                    label=_label(opened, int(shard.targets[i, k])),
                    confidence=float(shard.scores[i, k]),
                )
                whole = over_photo(heatmap, photo, preprocess)
                fields[f"heatmap{k}"] = fo.Heatmap(map=whole, range=[0, 255])
            if row.get("lat") is not None:
                fields["location"] = fo.GeoLocation(point=[row["lon"], row["lat"]])
            yield fo.Sample(filepath=str(uri_path(row["uri"])), run_id=row["id"], **fields)


def _label(run: OpenRun, target: int) -> str:
    """The class's name or number; a region has neither."""
    if run.classes is None or target < 0:
        return str(target)
    return run.classes.name(target)


def over_photo(
    heatmap: NDArray[np.uint8], photo: tuple[int, int], preprocess: Preprocess | None
) -> NDArray[np.uint8]:
    """Pad a heatmap [h,w] of a crop with zeros to cover the whole image.

    Args:
        heatmap: on any grid.
        photo: (width, height) of the upright image, pixels.
        preprocess: of the run; None if the model saw whole images.

    Returns:
        uint8 [h',w'] over the whole image, on the same grid, rounded to its cells.
    """
    rows, columns = heatmap.shape
    left, top, right, bottom = visible_box(photo, preprocess)
    across, down = (right - left) / columns, (bottom - top) / rows
    x, y = round(left / across), round(top / down)
    shape = max(y + rows, round(photo[1] / down)), max(x + columns, round(photo[0] / across))
    whole = np.zeros(shape, np.uint8)
    whole[y : y + rows, x : x + columns] = heatmap
    return whole
