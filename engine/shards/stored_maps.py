"""Read the maps of a shard row group by row group."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from pathlib import Path
from threading import Lock
from typing import Any

from combicam.engine.storage.paths import damage_named, open_parquet

# Columns that tables leave out: bytes of maps, and what is needed to decode them.
MAP_COLUMNS = (
    "heatmap",
    "heatmap_height",
    "heatmap_width",
    "layer_maps",
    "layer_highs",
    "layer_sizes",
)
_READ_BYTES = 128 * 2**20


class StoredMaps:
    """The columns of maps of a shard, of which some row groups are in memory.

    Args:
        path: of the shard.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._groups: dict[int, Any] = {}
        self._lock = Lock()
        with open_parquet(path) as file:
            sizes = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            self._ends = list(itertools.accumulate(sizes))
            self._names = [name for name in file.schema_arrow.names if name in MAP_COLUMNS]

    def row(self, row: int) -> tuple[Any, int]:
        """A table that has a row, and the row's index in it; negative rows count from the end."""
        row = range(self._ends[-1] if self._ends else 0)[row]
        group = bisect_right(self._ends, row)
        with self._lock:
            table = self._groups.pop(group, None)
            self._groups[group] = table = self._read(group) if table is None else table
            while len(self._groups) > 1 and self._bytes() > _READ_BYTES:
                self._groups.pop(next(iter(self._groups)))
        return table, row - (self._ends[group - 1] if group else 0)

    def _bytes(self) -> int:
        return sum(table.nbytes for table in self._groups.values())

    def _read(self, group: int) -> Any:
        with open_parquet(self._path) as file, damage_named(self._path):
            return file.read_row_group(group, columns=self._names)
