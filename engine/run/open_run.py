"""Open a run to read its rows as one table and its maps as arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from combicam.engine.run.directory import DAMAGED
from combicam.engine.run.layout import RunLayout
from combicam.engine.shards.files import ShardData, read_shard_file
from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.stored_maps import MAP_COLUMNS
from combicam.engine.storage.atomic import read_json
from combicam.engine.storage.paths import (
    arrow_file,
    damage_named,
    location,
    open_parquet,
    read_parquet,
)
from combicam.errors import RunError, first_line
from combicam.export.classes.classes import ClassTable
from combicam.export.preprocess import Preprocess
from combicam.export.spec import CamSpec


class OpenRun:
    """The committed shards of a run, finished or not, in the order of its inputs.

    Shards that are committed later need another ``open_run``.

    Attributes:
        path: of the run directory.
        layout: paths of its files.
        shards: indices of the committed shards.
        spec: what was computed.
        maps: how maps are stored.
        dataset: ``pyarrow.dataset.Dataset`` of all rows: for DuckDB, Polars, pandas, Arrow.
    """

    def __init__(self, layout: RunLayout) -> None:
        self.path = layout.path
        self.layout = layout
        self._files = layout.shard_files()
        if not self._files:
            raise RunError(
                f"open_run: expected a run directory with committed shards, got {self.path} "
                "without any; see combicam status"
            )
        self.shards = tuple(self._files)
        files = list(self._files.values())
        with open_parquet(files[0]) as first:
            schema = first.schema_arrow
        with _intact(files[0]):
            self.spec = CamSpec.from_json(schema.metadata[b"combicam.spec"])
            self.maps = MapFormat.from_dict(json.loads(schema.metadata[b"combicam.heatmap"]))
        import pyarrow.dataset  # imports pandas, if it is there: slow

        names = [arrow_file(file)[0] for file in files]
        system = arrow_file(files[0])[1]
        self.dataset: Any = pyarrow.dataset.dataset(names, schema=schema, filesystem=system)

    @cached_property
    def classes(self) -> ClassTable | None:
        """Names and locations of all classes; None if the model has none."""
        if not self.layout.classes.exists():
            return None
        with _intact(self.layout.classes):
            return ClassTable.from_dict(read_json(self.layout.classes, DAMAGED))

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the rows, as in ``run.json``."""
        return read_json(self.layout.fingerprint, DAMAGED)

    @property
    def preprocess(self) -> Preprocess | None:
        """How images became the model's input; None if the run does not record it."""
        with _intact(self.layout.fingerprint):
            values = self.fingerprint.get("explainer", {}).get("preprocess")
            return None if values is None else Preprocess.from_dict(values)

    def __len__(self) -> int:
        """Number of committed rows."""
        with damage_named(self.layout.shards):
            return int(self.dataset.count_rows())

    def table(self, columns: Sequence[str] | None = None, where: Any = None) -> Any:
        """Rows as a ``pyarrow.Table``, in the order of the inputs.

        Args:
            columns: their names; default: all but the maps and their sizes.
            where: a ``pyarrow.compute`` expression, as ``pc.field("status") == "ok"``.

        Raises:
            ValueError: columns that the run does not have.
        """
        known = self.dataset.schema.names
        if columns is None:
            columns = [name for name in known if name not in MAP_COLUMNS]
        if isinstance(columns, str) or not set(columns) <= set(known):
            raise ValueError(
                f"open_run: expected a list of columns, of {known}, got {columns!r}; take some of "
                "these"
            )
        with damage_named(self.layout.shards):
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
        return read_shard_file(self._files[index])

    def find(self, identity: str) -> tuple[ShardData, int]:
        """The shard and row of an input; reads only ids until it is found.

        Raises:
            KeyError: no committed row has this id.
        """
        for index, file in self._files.items():
            ids = read_parquet(file, ["id"]).column("id")
            row = pc.index(ids, identity).as_py()
            if row >= 0:
                return self.shard(index), row
        raise KeyError(identity)


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Report values of the wrong type in a file of the run as RunError."""
    try:
        yield
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise RunError(
            f"open_run: expected {path} as combicam wrote it, got {first_line(error)}; {DAMAGED}"
        ) from error


def read_shard(path: str | Path, index: int | None = None) -> ShardData:
    """Read a shard as arrays.

    Args:
        path: a shard file, or a run directory.
        index: of the shard in the run directory.

    Raises:
        ValueError: a run directory without ``index``, or a shard file with one.
        RunError: no such shard, or a Parquet file that combicam did not write.
    """
    path = location(path)
    if path.is_dir() == (index is None):
        raise ValueError(
            f"read_shard: expected a shard file, or a run directory and an index, "
            f"got {path} and {index}"
        )
    return read_shard_file(path if index is None else RunLayout(path).shard(index))


def open_run(path: str | Path) -> OpenRun:
    """Open a run directory to read it.

    Args:
        path: of the run; ``s3://bucket/run`` too.

    Raises:
        RunError: no run directory, or one without a committed shard.
    """
    return OpenRun(RunLayout(location(path)))
