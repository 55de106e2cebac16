"""Define the columns of a shard file, and make the rows of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from combicam.engine.geo.location_estimate import place_fields, place_values, truth_values
from combicam.engine.inputs.entry import Entry
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.quantise import QuantisedExplanation
from combicam.engine.shards.status import NON_FINITE, OK
from combicam.export.classes.classes import ClassTable
from combicam.export.spec import CamSpec

_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("id", pa.string()),
    ("uri", pa.string()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("targets", pa.list_(pa.int64())),
    ("scores", pa.list_(pa.float32())),
    ("heatmap", pa.binary()),
    ("low", pa.list_(pa.float32())),
    ("high", pa.list_(pa.float32())),
    ("flat", pa.list_(pa.bool_())),
    ("decoder", pa.string()),
)
_PLACED = ("places", "probabilities", "densities")


@dataclass(frozen=True)
class Record:
    """The facts about an input before it is explained; ``status`` ok means that it can be."""

    entry: Entry
    status: str = OK
    error: str | None = None
    width: int | None = None
    height: int | None = None
    decoder: str | None = None
    truncated: bool = False


@dataclass(frozen=True)
class ShardFormat:
    """Columns, metadata and rows of a run's shards.

    Args:
        spec: written into the metadata.
        maps: format of a row's maps.
        classes: with names, they add ``class_name``: of the first target, or, with locations, of
            the most likely class; with locations, also the columns of
            :func:`~combicam.engine.geo.location_estimate.place_fields`.
        has_truth: whether the location of some inputs is known.
        explain: the targets if they are not simply the best classes, one word each; written into
            the metadata.
        has_truncated: add ``truncated``, whether a row's file ends too early.
    """

    spec: CamSpec
    maps: MapFormat
    classes: ClassTable | None = None
    has_truth: bool = False
    explain: tuple[str, ...] = ()
    has_truncated: bool = False

    def schema(self) -> Any:
        """The pyarrow schema, the same in all shards of a run."""
        columns = list(_COLUMNS)
        if self.has_truncated:
            columns.append(("truncated", pa.bool_()))
        if self.maps.varies:
            columns += [("heatmap_height", pa.int32()), ("heatmap_width", pa.int32())]
        if self.maps.layers:
            columns += [("layer_maps", pa.binary()), ("layer_highs", pa.list_(pa.float32()))]
        if self.maps.layers and self.maps.varies:
            columns.append(("layer_sizes", pa.list_(pa.int32())))
        if self.classes is not None and self.classes.names:
            columns.append(("class_name", pa.string()))
        if self.classes is not None and self.classes.has_places:
            columns += place_fields(self.classes, self.has_truth)
        heatmap = json.dumps(self.maps.to_dict())
        metadata = {"combicam.heatmap": heatmap, "combicam.spec": self.spec.to_json()}
        if self.explain:
            metadata["combicam.explain"] = json.dumps(self.explain)
        return pa.schema(columns, metadata)

    def table(self, records: Sequence[Record], results: QuantisedExplanation | None) -> Any:
        """Rows of a batch.

        Args:
            records: one per row, in order.
            results: of the records with status ok, in order; None if there are none.
        """
        values = [] if results is None else _values(results, self.maps)
        explained = iter(values)
        rows = [self._row(record, explained) for record in records]
        return pa.Table.from_pylist(rows, self.schema())

    def _row(self, record: Record, explained: Iterator[dict[str, Any] | None]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": record.entry.id,
            "uri": record.entry.uri,
            "status": record.status,
            "error": record.error,
            "width": record.width,
            "height": record.height,
            "decoder": record.decoder,
            "truncated": record.truncated,
        }
        found = next(explained) if record.status == OK else None
        if record.status == OK and found is None:
            row |= {"status": NON_FINITE, "error": "explain: scores or maps are not finite"}
        place = self._place(record.entry, found)
        return row | (found or {}) | place

    def _place(self, entry: Entry, found: dict[str, Any] | None) -> dict[str, Any]:
        """Name and location of the class; for failed rows, only the true location."""
        classes = self.classes
        row: dict[str, Any] = {}
        if classes is None:
            return row
        if not classes.has_places:
            target = -1 if found is None else found["targets"][0]
            known = classes.names and 0 <= target < len(classes)
            return {"class_name": classes.names[target]} if known else {}
        if found is not None:
            row = place_values(classes, *(found.pop(name) for name in _PLACED))
        return row | (truth_values(entry, row or None) if self.has_truth else {})


def _values(results: QuantisedExplanation, maps: MapFormat) -> list[dict[str, Any] | None]:
    """Per image, the columns of its explanation; None if they are not finite."""
    heatmaps = results.heatmaps.contiguous().numpy()
    columns: dict[str, Any] = {
        "targets": results.targets.tolist(),
        "scores": results.scores.numpy(),
        "low": results.ranges[..., 0].numpy(),
        "high": results.ranges[..., 1].numpy(),
        "flat": results.flat.tolist(),
    }
    if results.places is not None:
        placed = (results.places, results.probabilities, results.densities)
        columns |= {n: t.tolist() for n, t in zip(_PLACED, placed, strict=True) if t is not None}
    same: dict[str, Any] = {}
    if maps.varies:
        same |= {"heatmap_height": heatmaps.shape[2], "heatmap_width": heatmaps.shape[3]}
    if results.layer_highs is not None:
        columns["layer_highs"] = results.layer_highs.numpy()
        layers = torch.cat([m.flatten(1) for m in results.layer_maps], 1).numpy()
        if maps.varies:
            same["layer_sizes"] = [n for m in results.layer_maps for n in m.shape[2:]]

    def row(i: int) -> dict[str, Any]:
        found = {name: column[i] for name, column in columns.items()} | same
        found["heatmap"] = heatmaps[i].tobytes()
        if results.layer_highs is not None:
            found["layer_maps"] = layers[i].tobytes()
        return found

    return [row(i) if finite else None for i, finite in enumerate(results.finite.tolist())]
