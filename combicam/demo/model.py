"""Load the embedded model of ``--model demo``, with its preprocessing and cells."""

from __future__ import annotations

from combicam.demo.network import INPUT_SIZE, MEAN, STD, build
from combicam.demo.planet import CELLS
from combicam.export.classes.classes import ClassTable
from combicam.export.models.models import LoadedModel
from combicam.export.preprocess import Preprocess


def load() -> LoadedModel:
    """PlanetNet with its packaged weights; it knows postcards of the demo planet only."""
    return LoadedModel(
        module=build(),
        preprocess=Preprocess(INPUT_SIZE, MEAN, STD, resize="squash", interpolation="bilinear"),
        name="demo",
        classes=ClassTable(
            names=tuple(cell.name for cell in CELLS),
            latitudes=tuple(cell.latitude for cell in CELLS),
            longitudes=tuple(cell.longitude for cell in CELLS),
        ),
        note="demo: this model knows postcards of the embedded planet only, no real photos",
    )
