"""``ShardFormat``: the columns of a shard file and the rows of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from combicam.engine.entry import Entry
from combicam.engine.quantise import SCALE, QuantisedExplanation
from combicam.export.classes import ClassTable
from combicam.export.spec import CamSpec

OK = "ok"
DECODE_ERROR = "decode_error"
TOO_LARGE = "too_large"
MISSING = "missing"
NON_FINITE = "non_finite"

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
)


@dataclass(frozen=True)
class Record:
    """What is known of an input before it is explained; ``status`` ok means that it can be."""

    entry: Entry
    status: str = OK
    error: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class ShardFormat:
    """Columns, metadata and rows of a run's shards.

    Args:
        spec: written into the metadata.
        shape: (K, H, W) of a row's heatmap bytes.
        classes: adds the best target's ``class_name``, ``lat``, ``lon`` where it has them.
    """

    spec: CamSpec
    shape: tuple[int, int, int]
    classes: ClassTable | None = None

    def schema(self) -> Any:
        """The pyarrow schema, the same in all shards of a run."""
        columns = list(_COLUMNS)
        if self.classes is not None and self.classes.names:
            columns.append(("class_name", pa.string()))
        if self.classes is not None and self.classes.has_places:
            columns += [("lat", pa.float64()), ("lon", pa.float64())]
        heatmap = {"shape": list(self.shape), "dtype": "uint8", "scale": SCALE}
        return pa.schema(
            columns, {"combicam.heatmap": json.dumps(heatmap), "combicam.spec": self.spec.to_json()}
        )

    def table(self, records: Sequence[Record], results: QuantisedExplanation | None) -> Any:
        """Rows of a batch.

        Args:
            records: one per row, in order.
            results: of the records whose status is ok, in order; None when there are none.
        """
        values = [] if results is None else _values(results)
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
        }
        if record.status != OK:
            return row
        found = next(explained)
        if found is None:
            return row | {"status": NON_FINITE, "error": "explain: scores or maps are not finite"}
        return row | found | self._class_of(found["targets"][0])

    def _class_of(self, target: int) -> dict[str, Any]:
        classes = self.classes
        if classes is None or not 0 <= target < len(classes):
            return {}
        row: dict[str, Any] = {}
        if classes.names:
            row["class_name"] = classes.names[target]
        if classes.has_places:
            row |= {"lat": classes.latitudes[target], "lon": classes.longitudes[target]}
        return row


def _values(results: QuantisedExplanation) -> list[dict[str, Any] | None]:
    """Per image, the columns that come from explaining; None when they are not finite."""
    heatmaps = results.heatmaps.contiguous().numpy()
    columns: dict[str, Any] = {
        "targets": results.targets.tolist(),
        "scores": results.scores.numpy(),
        "low": results.ranges[..., 0].numpy(),
        "high": results.ranges[..., 1].numpy(),
        "flat": results.flat.tolist(),
    }
    return [
        {name: column[i] for name, column in columns.items()} | {"heatmap": heatmaps[i].tobytes()}
        if finite
        else None
        for i, finite in enumerate(results.finite.tolist())
    ]
