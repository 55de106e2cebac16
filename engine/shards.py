"""Shard files: written atomically, read back as arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from combicam.engine.atomic import commit, temporary_path
from combicam.engine.shard_format import OK, ShardFormat
from combicam.errors import RunError
from combicam.export.spec import CamSpec

_GROUP_BYTES = 16 * 2**20
_DICTIONARY = ["status", "error", "class_name"]
# Smallest and largest heatmap say nothing, and cost a comparison of every byte.
_STATISTICS = ["id", "uri", "status", "width", "height", "class_name", "lat", "lon"]


def shard_path(run: Path, index: int) -> Path:
    """``RUN/shards/00042.parquet``."""
    return run / "shards" / f"{index:05d}.parquet"


class ShardWriter:
    """Writes one shard, batch by batch; it appears on :meth:`commit`.

    Row groups have a fixed number of rows, so the bytes do not depend on how rows arrive.

    Args:
        path: of the shard; its folder exists.
        shard_format: columns and metadata.
    """

    def __init__(self, path: Path, shard_format: ShardFormat) -> None:
        self._path = path
        schema = shard_format.schema()
        self._group_rows = max(1, _GROUP_BYTES // int(np.prod(shard_format.shape)))
        self._waiting: Any = schema.empty_table()
        self._writer = pq.ParquetWriter(
            temporary_path(path),
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in _DICTIONARY if name in schema.names],
            write_statistics=[name for name in _STATISTICS if name in schema.names],
        )

    def add(self, table: Any) -> None:
        """Append rows."""
        self._waiting = pa.concat_tables([self._waiting, table])
        while self._waiting.num_rows >= self._group_rows:
            self._write(self._waiting.slice(0, self._group_rows))
            self._waiting = self._waiting.slice(self._group_rows)

    def commit(self) -> None:
        """Write what is left and make the shard appear, complete and durable."""
        if self._waiting.num_rows:
            self._write(self._waiting)
        self._writer.close()
        commit(self._path)

    def _write(self, group: Any) -> None:
        # Pages end where chunks do, and chunks are batches: one chunk makes bytes independent.
        self._writer.write_table(group.combine_chunks())

    def discard(self) -> None:
        """Leave nothing behind."""
        self._writer.close()
        temporary_path(self._path).unlink(missing_ok=True)


@dataclass(frozen=True)
class ShardData:
    """A shard's N rows as arrays; rows that failed have zeros, -1 targets and NaN scores.

    Attributes:
        table: all columns but ``heatmap`` (pyarrow.Table).
        ok: bool [N].
        heatmaps: uint8 [N,K,H,W]; times ``scale`` for [0, 1].
        targets: int64 [N,K].
        scores: float32 [N,K].
        ranges: float32 [N,K,2], min and max of the fused map before normalisation.
        flat: bool [N,K].
        spec: what was computed.
        scale: of a heatmap's unit.
    """

    table: Any
    ok: NDArray[np.bool_]
    heatmaps: NDArray[np.uint8]
    targets: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranges: NDArray[np.float32]
    flat: NDArray[np.bool_]
    spec: CamSpec
    scale: float


def read_shard(path: str | Path, index: int | None = None) -> ShardData:
    """Read a shard as arrays.

    Args:
        path: a shard file, or a run directory.
        index: of the shard in the run directory.

    Raises:
        ValueError: a run directory without ``index``, or an index with a file.
        RunError: no such shard, or a Parquet file that combicam did not write.
    """
    path = Path(path)
    if path.is_dir() == (index is None):
        raise ValueError(
            f"read_shard: expected a shard file, or a run directory and an index, "
            f"got {path} and {index}"
        )
    if index is not None:
        path = shard_path(path, index)
    if not path.is_file():
        raise RunError(f"read_shard: expected a committed shard, got nothing at {path}")
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    if b"combicam.heatmap" not in metadata:
        raise RunError(
            f"read_shard: expected a shard of combicam, got another Parquet file: {path}"
        )
    layout = json.loads(metadata[b"combicam.heatmap"])
    ok = np.asarray(pc.equal(table.column("status"), OK).to_numpy())
    targets = tuple(layout["shape"][:1])
    low_high = [_dense(table, name, ok, targets, np.nan, np.float32) for name in ("low", "high")]
    return ShardData(
        table=table.drop_columns(["heatmap"]),
        ok=ok,
        heatmaps=_heatmaps(table.column("heatmap"), ok, tuple(layout["shape"])),
        targets=_dense(table, "targets", ok, targets, -1, np.int64),
        scores=_dense(table, "scores", ok, targets, np.nan, np.float32),
        ranges=np.stack(low_high, -1),
        flat=_dense(table, "flat", ok, targets, False, np.bool_),
        spec=CamSpec.from_json(metadata[b"combicam.spec"]),
        scale=float(layout["scale"]),
    )


def _heatmaps(column: Any, ok: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    heatmaps = np.zeros((len(ok), *shape), np.uint8)
    for i in np.flatnonzero(ok):
        heatmaps[i] = np.frombuffer(column[int(i)].as_buffer(), np.uint8).reshape(shape)
    return heatmaps


def _dense(
    table: Any, name: str, ok: NDArray[np.bool_], shape: tuple[int, ...], fill: Any, dtype: Any
) -> NDArray[Any]:
    """A list column as an array, failed rows filled."""
    values = np.full((len(ok), *shape), fill, dtype)
    if ok.any():
        flat = pc.list_flatten(table.column(name)).to_numpy()
        values[ok] = flat.reshape(-1, *shape)
    return values
