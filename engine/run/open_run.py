"""``open_run``: a run's rows as one table, its maps as arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds

from combicam.engine.run.directory import CLASSES
from combicam.engine.shards.files import ShardData, read_shard
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.storage.paths import arrow_file, location, open_parquet, read_parquet
from combicam.errors import RunError
from combicam.export.classes.classes import ClassTable
from combicam.export.spec import CamSpec


class OpenRun:
    """The committed shards of a run, in the order of its inputs; also while the run goes on.

    What is committed later is seen by another ``open_run``.

    Attributes:
        path: of the run directory.
        shards: indices of the committed shards.
        spec: what was computed.
        maps: what is stored of the maps.
        dataset: ``pyarrow.dataset.Dataset`` of all rows: for DuckDB, Polars, pandas, Arrow.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        self._files = {int(file.stem): file for file in files}
        self.shards = tuple(self._files)
        with open_parquet(files[0]) as first:
            schema = first.schema_arrow
        self.spec = CamSpec.from_json(schema.metadata[b"combicam.spec"])
        self.maps = MapFormat.from_dict(json.loads(schema.metadata[b"combicam.heatmap"]))
        names = [arrow_file(file)[0] for file in files]
        system = arrow_file(files[0])[1]
        self.dataset: Any = ds.dataset(names, schema=schema, filesystem=system)

    @cached_property
    def classes(self) -> ClassTable | None:
        """Names and places of all classes; None where the network has none."""
        path = self.path / CLASSES
        if not path.exists():
            return None
        return ClassTable.from_dict(json.loads(path.read_text(encoding="utf-8")))

    def __len__(self) -> int:
        """How many rows are committed."""
        return int(self.dataset.count_rows())

    def table(self, columns: Sequence[str] | None = None, where: Any = None) -> Any:
        """Rows as a ``pyarrow.Table``, in the order of the inputs.

        Args:
            columns: their names; default: all but the maps.
            where: a ``pyarrow.compute`` expression, as ``pc.field("status") == "ok"``.

        Raises:
            ValueError: columns that the run does not have.
        """
        there = self.dataset.schema.names
        if columns is None:
            columns = [name for name in there if name not in _MAPS]
        if isinstance(columns, str) or not set(columns) <= set(there):
            raise ValueError(
                f"open_run: expected a list of columns, of {there}, got {columns!r}; take some of "
                "these"
            )
        return self.dataset.to_table(columns=list(columns), filter=where)

    def shard(self, index: int) -> ShardData:
        """A shard as arrays.

        Raises:
            RunError: it is not committed.
        """
        if index not in self._files:
            raise RunError(
                f"open_run: expected one of the {len(self.shards)} committed shards, got {index}; "
                "the run may still go on"
            )
        return read_shard(self._files[index])

    def find(self, identity: str) -> tuple[ShardData, int]:
        """The shard of an input, and its row there; reads ids alone until it is found.

        Raises:
            KeyError: no committed row of that id.
        """
        for index, file in self._files.items():
            ids = read_parquet(file, ["id"]).column("id")
            row = pc.index(ids, identity).as_py()
            if row >= 0:
                return self.shard(index), row
        raise KeyError(identity)


_MAPS = frozenset({"heatmap", "layer_maps", "layer_highs", "layer_sizes"})


def open_run(path: str | Path) -> OpenRun:
    """Open a run directory to read it.

    Args:
        path: of the run; ``s3://bucket/run`` too.

    Raises:
        RunError: no run directory, or one without a committed shard.
    """
    path = location(path)
    # By number: of more than 100,000 names, 100000 comes before 10001.
    files = sorted((path / "shards").glob("[0-9]*.parquet"), key=lambda file: int(file.stem))
    if not files:
        raise RunError(
            f"open_run: expected a run directory with committed shards, got {path} without; see "
            "combicam status"
        )
    return OpenRun(path, files)
