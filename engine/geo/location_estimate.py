"""Estimate locations from logits: the most likely cells, and how concentrated they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from combicam.engine.geo.density import RADII_KM, cosines, density_around
from combicam.engine.geo.distance import distance_km
from combicam.engine.inputs.entry import Entry
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable
from combicam.export.classes.places import unit_vectors

TOP_PLACES = 5
_PLACE = pa.struct(
    [("class", pa.int64()), ("lat", pa.float64()), ("lon", pa.float64()), ("probability", "float")]
)


@dataclass(frozen=True)
class Placed:
    """The model's location estimates of B images.

    Attributes:
        classes: int64 [B,k], most likely first.
        probabilities: float32 [B,k].
        densities: float32 [B,R], see :func:`~combicam.engine.geo.density.prediction_density`.
    """

    classes: Tensor
    probabilities: Tensor
    densities: Tensor


class LocationEstimator:
    """Estimates locations of a batch on its device, without synchronisation.

    Args:
        classes: with locations.
        count: k, locations per image; fewer if there are fewer classes.
        device: of the logits.

    Raises:
        ValueError: a count below 1.
    """

    def __init__(self, classes: ClassTable, count: int, device: torch.device) -> None:
        if count < 1:
            raise ValueError(f"run: expected top_places >= 1, got {count}")
        self._count = min(count, len(classes))
        vectors = unit_vectors(classes.latitudes, classes.longitudes)
        self._vectors = torch.from_numpy(vectors).to(device)
        self._limits = cosines(RADII_KM)

    def __call__(self, logits: Tensor, explained: Tensor) -> Placed:
        """Estimate the locations of a batch.

        Args:
            logits: float [B,n].
            explained: int64 [B], a class that comes first among equally likely ones, so that a
                row's location is that of its map; -1 for none.

        Raises:
            RunError: the number of logits is not the number of classes.
        """
        if logits.shape[1] != len(self._vectors):
            raise RunError(
                f"run: expected {len(self._vectors)} logits, one for each location of the class "
                f"table, got {logits.shape[1]}; give the table of this model"
            )
        probabilities = logits.float().softmax(-1)
        # Compares logits: probabilities of a confident model round to equal zeros.
        first = explained.clamp_min(0)[:, None]
        known = logits.gather(1, first)
        is_best = known == logits.amax(1, keepdim=True)
        ranked = logits.scatter(1, first, torch.where(is_best, torch.inf, known))
        classes = ranked.topk(self._count).indices
        densities = density_around(probabilities, self._vectors, classes[:, 0], self._limits)
        return Placed(classes, probabilities.gather(1, classes), densities)


def density_column(radius_km: float) -> str:
    """``density_25km``."""
    return f"density_{radius_km:g}km"


def place_fields(classes: ClassTable, has_truth: bool) -> list[tuple[str, Any]]:
    """Location columns of a run: names and types.

    Args:
        classes: of the run.
        has_truth: whether some inputs have ground truth.
    """
    fields = [("lat", pa.float64()), ("lon", pa.float64())]
    if classes.s2_tokens:
        fields.append(("s2_token", pa.string()))
    fields.append(("places", pa.list_(_PLACE)))
    fields += [(density_column(radius), pa.float32()) for radius in RADII_KM]
    if has_truth:
        fields += [(name, pa.float64()) for name in ("true_lat", "true_lon", "error_km")]
    return fields


def place_values(
    classes: ClassTable, cells: Sequence[int], probabilities: Any, densities: Any
) -> dict[str, Any]:
    """Location columns of an explained row.

    Args:
        classes: of the run.
        cells: [k], the most likely classes.
        probabilities: [k], of these classes.
        densities: [R].
    """
    places = [
        {
            "class": cell,
            "lat": classes.latitudes[cell],
            "lon": classes.longitudes[cell],
            "probability": probability,
        }
        for cell, probability in zip(cells, probabilities, strict=True)
    ]
    row = {"lat": places[0]["lat"], "lon": places[0]["lon"], "places": places}
    if classes.names:
        row["class_name"] = classes.names[cells[0]]
    if classes.s2_tokens:
        row["s2_token"] = classes.s2_tokens[cells[0]]
    return row | {
        density_column(radius): density for radius, density in zip(RADII_KM, densities, strict=True)
    }


def truth_values(entry: Entry, place: dict[str, Any] | None) -> dict[str, Any]:
    """Ground truth columns of a row, with the error of its prediction.

    Args:
        entry: the input.
        place: the columns ``lat`` and ``lon``; None for a row without a prediction.
    """
    if entry.true_lat is None or entry.true_lon is None:
        return {}
    row = {"true_lat": entry.true_lat, "true_lon": entry.true_lon}
    if place is not None:
        true = entry.true_lat, entry.true_lon
        row["error_km"] = float(distance_km(place["lat"], place["lon"], *true))
    return row
