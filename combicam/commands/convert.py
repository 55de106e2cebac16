"""``combicam convert``: write a run in the formats that other tools read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from combicam.commands.printing import print_table
from combicam.engine.outputs.fiftyone_samples import write_fiftyone
from combicam.engine.outputs.geojson import write_geojson
from combicam.engine.outputs.geoparquet import write_geoparquet
from combicam.engine.outputs.webdataset import write_webdataset
from combicam.engine.storage.paths import LOCATION


@dataclass(frozen=True)
class Config:
    """Write a run in another format: tars, a FiftyOne dataset, or a file of locations for maps.

    Args:
        run: run directory.
        output: folder of WebDataset tars, one for each shard; existing ones are kept.
        photos: also copy the images into the tars.
        fiftyone: name of a new FiftyOne dataset.
        geoparquet: GeoParquet file of the predicted locations.
        geojson: GeoJSON file of the predicted locations.
        cells: write S2 cells as polygons into the GeoJSON file, instead of points.

    Raises:
        ValueError: no output, photos without tars, or cells without GeoJSON.
    """

    run: Annotated[tyro.conf.Positional[Path], LOCATION]
    output: Annotated[tyro.conf.Positional[Path | None], LOCATION] = None
    photos: bool = False
    fiftyone: str | None = None
    geoparquet: Annotated[Path | None, LOCATION] = None
    geojson: Annotated[Path | None, LOCATION] = None
    cells: bool = False

    def __post_init__(self) -> None:
        others = (self.fiftyone, self.geoparquet, self.geojson)
        if self.output is None and (self.photos or all(other is None for other in others)):
            raise ValueError(
                "convert: expected a folder for tars, --fiftyone NAME, --geoparquet FILE or "
                "--geojson FILE, got none; --photos is for tars"
            )
        if self.cells and self.geojson is None:
            raise ValueError("convert: expected --geojson FILE with --cells, got none; name a file")


def main(config: Config) -> None:
    """Write the requested outputs."""
    if config.output is not None:
        samples = write_webdataset(config.run, config.output, config.photos)
        print_table([("samples", str(samples)), ("tars", str(config.output))])
    if config.fiftyone is not None:
        samples = write_fiftyone(config.run, config.fiftyone)
        print_table([("samples", str(samples)), ("FiftyOne dataset", config.fiftyone)])
    if config.geoparquet is not None:
        rows = write_geoparquet(config.run, config.geoparquet)
        print_table([("places", str(rows)), ("GeoParquet", str(config.geoparquet))])
    if config.geojson is not None:
        rows = write_geojson(config.run, config.geojson, config.cells)
        print_table([("places", str(rows)), ("GeoJSON", str(config.geojson))])
