"""Read shard files as arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from combicam.engine.shards.map_format import SCALE, MapFormat
from combicam.engine.shards.status import OK
from combicam.engine.shards.stored_maps import MAP_COLUMNS, StoredMaps
from combicam.engine.storage.paths import open_parquet, read_parquet
from combicam.errors import RunError
from combicam.export.spec import CamSpec

_SIDES = ("height", "width")


@dataclass(frozen=True)
class ShardData:
    """A shard's N rows as arrays; failed rows have zeros, targets of -1 and scores of NaN.

    Maps are read from the file when they are asked for.

    Attributes:
        table: all columns except :data:`MAP_COLUMNS` (pyarrow.Table).
        ok: bool [N].
        targets: int64 [N,K].
        scores: float32 [N,K].
        ranges: float32 [N,K,2], min and max of the fused map before normalisation.
        flat: bool [N,K].
        spec: of the run.
        maps: which maps are stored, and on which grids.
    """

    table: Any
    ok: NDArray[np.bool_]
    targets: NDArray[np.int64]
    scores: NDArray[np.float32]
    ranges: NDArray[np.float32]
    flat: NDArray[np.bool_]
    spec: CamSpec
    maps: MapFormat
    _stored: StoredMaps = field(repr=False)

    @cached_property
    def heatmaps(self) -> NDArray[Any]:
        """uint8 [N,K,h,w] as stored; multiply by ``scale`` for [0, 1].

        If images differ in size, an object array [N] of uint8 [K,h,w]. :meth:`heatmap` reads single
        ones, of shards that are larger than memory.
        """
        shape = (len(self.ok), self.maps.targets, *(self.maps.size or ()))
        differ = self.maps.size is None
        values = np.empty(len(self.ok), object) if differ else np.zeros(shape, np.uint8)
        for row in range(len(self.ok)):
            if differ or self.ok[row]:
                values[row] = self._heatmap(row)
        return values

    def _heatmap(self, row: int) -> NDArray[np.uint8]:
        """uint8 [K,h,w] as stored; zeros, or if images differ in size nothing, of a failed row."""
        if not self.ok[row]:
            return np.zeros((self.maps.targets, *(self.maps.size or (0, 0))), np.uint8)
        table, index = self._stored.row(row)
        size = None
        if self.maps.varies:
            size = tuple(table.column(f"heatmap_{side}")[index].as_py() for side in _SIDES)
        return self.maps.heatmap(table.column("heatmap")[index].as_buffer(), size)

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
        stored = torch.from_numpy(self._heatmap(index).copy()).float()[None] * SCALE
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
        table, at = self._stored.row(index)
        row = table.slice(at, 1).to_pylist()[0]
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
    with open_parquet(path) as file:
        known, metadata = file.schema_arrow.names, file.schema_arrow.metadata or {}
    if b"combicam.heatmap" not in metadata:
        raise RunError(
            f"read_shard: expected a shard of combicam, got another Parquet file: {path}"
        )
    table = read_parquet(path, [name for name in known if name not in MAP_COLUMNS])
    maps = MapFormat.from_dict(json.loads(metadata[b"combicam.heatmap"]))
    ok = np.asarray(pc.equal(table.column("status"), OK).to_numpy())
    targets = (maps.targets,)
    low_high = [_dense(table, name, ok, targets, np.nan, np.float32) for name in ("low", "high")]
    return ShardData(
        table=table,
        ok=ok,
        targets=_dense(table, "targets", ok, targets, -1, np.int64),
        scores=_dense(table, "scores", ok, targets, np.nan, np.float32),
        ranges=np.stack(low_high, -1),
        flat=_dense(table, "flat", ok, targets, False, np.bool_),
        spec=CamSpec.from_json(metadata[b"combicam.spec"]),
        maps=maps,
        _stored=StoredMaps(path),
    )


def _dense(
    table: Any, name: str, ok: NDArray[np.bool_], shape: tuple[int, ...], fill: Any, dtype: Any
) -> NDArray[Any]:
    """A list column as an array, with failed rows filled."""
    values = np.full((len(ok), *shape), fill, dtype)
    if ok.any():
        flat = pc.list_flatten(table.column(name)).to_numpy()
        values[ok] = flat.reshape(-1, *shape)
    return values
