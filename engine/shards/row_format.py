"""Define the columns of a shard file, and make the rows of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

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
_MOST_BYTES = 2**31 - 1  # of a binary array, whose offsets are int32
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
        table = pa.Table.from_pylist(rows, self.schema())
        if results is None:
            return table
        finite = results.finite.numpy()
        has_maps = np.array([row["status"] == OK for row in rows])
        for name, maps in _map_bytes(results).items():
            column = binary_column(maps if finite.all() else maps[finite], has_maps)
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), column)
        return table

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
    """Per image, the columns of its explanation but its maps; None if they are not finite."""
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
        height, width = results.heatmaps.shape[2:]
        same |= {"heatmap_height": height, "heatmap_width": width}
    if results.layer_highs is not None:
        columns["layer_highs"] = results.layer_highs.numpy()
        if maps.varies:
            same["layer_sizes"] = [n for m in results.layer_maps for n in m.shape[2:]]

    def row(i: int) -> dict[str, Any]:
        return {name: column[i] for name, column in columns.items()} | same

    return [row(i) if finite else None for i, finite in enumerate(results.finite.tolist())]


def _map_bytes(results: QuantisedExplanation) -> dict[str, NDArray[np.uint8]]:
    """Columns of maps: name -> uint8 [B,bytes]."""
    found = {"heatmap": results.heatmaps}
    if results.layer_highs is not None:
        found["layer_maps"] = torch.cat([m.flatten(1) for m in results.layer_maps], 1)
    return {name: maps.flatten(1).contiguous().numpy() for name, maps in found.items()}


def binary_column(values: NDArray[np.uint8], present: NDArray[np.bool_]) -> Any:
    """Rows of bytes as a pyarrow column, in the memory of ``values`` and without Python's bytes.

    Args:
        values: uint8 [n,bytes], contiguous.
        present: bool [N], of which n are True; the others are null.
    """
    width = values.shape[1]
    most = max(1, _MOST_BYTES // max(1, width))
    chunks, used = [], 0
    for start in range(0, len(present), most):
        here = present[start : start + most]
        ends = np.cumsum(np.append(False, here), dtype=np.int32) * np.int32(width)
        count = int(here.sum())
        buffers = (np.packbits(here, bitorder="little"), ends, values[used : used + count])
        chunks.append(
            pa.Array.from_buffers(pa.binary(), len(here), [pa.py_buffer(b) for b in buffers])
        )
        used += count
    return pa.chunked_array(chunks, pa.binary())
