"""Write shard files atomically, and read them back as arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from combicam.engine.shards.map_format import SCALE, MapFormat
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.shards.status import OK
from combicam.engine.storage.atomic import commit, temporary_path
from combicam.engine.storage.paths import arrow_file, read_parquet
from combicam.errors import RunError
from combicam.export.spec import CamSpec

_GROUP_BYTES = 16 * 2**20
_DICTIONARY = ["status", "error", "decoder", "class_name", "s2_token"]
# Columns that tables leave out: bytes of maps, and what is needed to decode them.
MAP_COLUMNS = (
    "heatmap",
    "heatmap_height",
    "heatmap_width",
    "layer_maps",
    "layer_highs",
    "layer_sizes",
)
# Statistics of heatmaps are useless, and cost a comparison of every byte.
_STATISTICS = ["id", "uri", "status", "width", "height", "class_name", "lat", "lon", "error_km"]


class ShardWriter:
    """Writes one shard, batch by batch; the file appears on :meth:`commit`.

    Row groups have a fixed number of rows, so the bytes do not depend on batch sizes and order.

    Args:
        path: of the shard, in an existing folder.
        shard_format: columns and metadata.
    """

    def __init__(self, path: Path, shard_format: ShardFormat) -> None:
        self._path = path
        schema = shard_format.schema()
        self._group_rows = max(1, _GROUP_BYTES // _row_bytes(shard_format.maps))
        self._waiting: Any = schema.empty_table()
        self._early: list[tuple[Any, Sequence[int]]] = []
        self._added = 0
        name, system = arrow_file(temporary_path(path))
        self._writer = pq.ParquetWriter(
            name,
            schema,
            filesystem=system,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in _DICTIONARY if name in schema.names],
            write_statistics=[name for name in _STATISTICS if name in schema.names],
        )

    def add(self, table: Any, rows: Sequence[int] | None = None) -> None:
        """Append rows; those that arrive early are kept until the shard is complete.

        Args:
            table: of :class:`ShardFormat`.
            rows: their indices in the shard; default: the next ones.
        """
        if self._early or (rows is not None and [*rows] != [*self._turn(len(rows))]):
            self._early.append((table, rows or self._turn(table.num_rows)))
        else:
            self._append(table)
        self._added += table.num_rows

    def _turn(self, count: int) -> range:
        return range(self._added, self._added + count)

    def _append(self, table: Any) -> None:
        self._waiting = pa.concat_tables([self._waiting, table])
        while self._waiting.num_rows >= self._group_rows:
            self._write(self._waiting.slice(0, self._group_rows))
            self._waiting = self._waiting.slice(self._group_rows)

    def commit(self) -> None:
        """Write the remaining rows, and commit the file durably."""
        if self._early:
            tables, rows = zip(*self._early, strict=True)
            early = pa.concat_tables(tables)
            order = np.argsort(np.concatenate(rows))
            for start in range(0, len(order), self._group_rows):
                self._append(early.take(order[start : start + self._group_rows]))
        if self._waiting.num_rows:
            self._write(self._waiting)
        self._writer.close()
        commit(self._path)

    def _write(self, group: Any) -> None:
        # Pages end with chunks, which are batches: one chunk makes the bytes independent of them.
        self._writer.write_table(group.combine_chunks())

    def discard(self) -> None:
        """Delete the temporary file."""
        self._writer.close()
        temporary_path(self._path).unlink(missing_ok=True)


def _row_bytes(maps: MapFormat) -> int:
    """Bytes of a row's maps; an estimate if they vary."""
    sizes = [maps.size or (256, 256), *maps.layer_sizes]
    return maps.targets * sum(h * w for h, w in sizes)


@dataclass(frozen=True)
class ShardData:
    """A shard's N rows as arrays; failed rows have zeros, targets of -1 and scores of NaN.

    Attributes:
        table: all columns except :data:`MAP_COLUMNS` (pyarrow.Table).
        ok: bool [N].
        heatmaps: uint8 [N,K,h,w] as stored; multiply by ``scale`` for [0, 1]. If images differ
            in size, an object array [N] of uint8 [K,h,w].
        targets: int64 [N,K].
        scores: float32 [N,K].
        ranges: float32 [N,K,2], min and max of the fused map before normalisation.
        flat: bool [N,K].
        spec: of the run.
        maps: which maps are stored, and on which grids.
    """

    table: Any
    ok: NDArray[np.bool_]
    heatmaps: NDArray[Any]
    targets: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranges: NDArray[np.float32]
    flat: NDArray[np.bool_]
    spec: CamSpec
    maps: MapFormat
    _stored: Any = field(repr=False)

    @property
    def scale(self) -> float:
        """The value of a unit of the stored heatmaps."""
        return SCALE

    def heatmap(self, index: int, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A row's heatmaps, upsampled like the explainer's: float32 [K,H,W] in [0, 1].

        Args:
            index: of the row.
            size: (H, W), pixels; default: the model's input size, or the stored size if images
                differ in size.
        """
        stored = torch.from_numpy(self.heatmaps[index].copy()).float()[None] * SCALE
        size = size or self.maps.input_size
        if size is None or not self.ok[index]:
            full = stored if size is None else stored.new_zeros(1, stored.shape[1], *size)
        else:
            corners = bool(self.maps.align_corners)
            full = interpolate(stored, size, mode="bilinear", align_corners=corners)
        values: NDArray[np.float32] = full[0].numpy()
        return values

    def layer_maps(self, index: int) -> dict[str, NDArray[np.float32]]:
        """A row's maps of every layer: name -> float32 [K,h,w]; empty for a failed row.

        Raises:
            RunError: the run did not store them.
        """
        if not self.maps.layers:
            raise RunError(
                "read_shard: expected a run with layer maps, got one without; run it with "
                "store='layers' (--store layers)"
            )
        row = self._stored.slice(index, 1).to_pylist()[0]
        if row["layer_maps"] is None:
            return {}
        flat = row.get("layer_sizes") or []
        sizes = tuple(zip(flat[::2], flat[1::2], strict=True))
        return self.maps.layer_maps(
            row["layer_maps"], np.asarray(row["layer_highs"], np.float32), sizes
        )


def read_shard_file(path: Path) -> ShardData:
    """Read a shard as arrays.

    Args:
        path: of the file.

    Raises:
        RunError: no shard there, or a Parquet file that combicam did not write.
    """
    if not path.is_file():
        raise RunError(f"read_shard: expected a committed shard, got no file at {path}")
    table = read_parquet(path)
    metadata = table.schema.metadata or {}
    if b"combicam.heatmap" not in metadata:
        raise RunError(
            f"read_shard: expected a shard of combicam, got another Parquet file: {path}"
        )
    maps = MapFormat.from_dict(json.loads(metadata[b"combicam.heatmap"]))
    ok = np.asarray(pc.equal(table.column("status"), OK).to_numpy())
    targets = (maps.targets,)
    stored = table.select([name for name in MAP_COLUMNS if name in table.column_names])
    low_high = [_dense(table, name, ok, targets, np.nan, np.float32) for name in ("low", "high")]
    return ShardData(
        table=table.drop_columns(stored.column_names),
        ok=ok,
        heatmaps=_heatmaps(stored, ok, maps),
        targets=_dense(table, "targets", ok, targets, -1, np.int64),
        scores=_dense(table, "scores", ok, targets, np.nan, np.float32),
        ranges=np.stack(low_high, -1),
        flat=_dense(table, "flat", ok, targets, False, np.bool_),
        spec=CamSpec.from_json(metadata[b"combicam.spec"]),
        maps=maps,
        _stored=stored,
    )


def _heatmaps(stored: Any, ok: NDArray[np.bool_], maps: MapFormat) -> NDArray[Any]:
    column = stored.column("heatmap")
    if maps.size is not None:
        heatmaps = np.zeros((len(ok), maps.targets, *maps.size), np.uint8)
        for i in np.flatnonzero(ok):
            heatmaps[i] = maps.heatmap(column[int(i)].as_buffer(), None)
        return heatmaps
    different = np.empty(len(ok), object)
    heights, widths = (stored.column(f"heatmap_{side}").to_pylist() for side in ("height", "width"))
    for row, good in enumerate(ok):
        size = (heights[row], widths[row]) if good else (0, 0)
        different[row] = maps.heatmap(column[row].as_buffer() if good else b"", size)
    return different


def _dense(
    table: Any, name: str, ok: NDArray[np.bool_], shape: tuple[int, ...], fill: Any, dtype: Any
) -> NDArray[Any]:
    """A list column as an array, with failed rows filled."""
    values = np.full((len(ok), *shape), fill, dtype)
    if ok.any():
        flat = pc.list_flatten(table.column(name)).to_numpy()
        values[ok] = flat.reshape(-1, *shape)
    return values
