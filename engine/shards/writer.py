"""Write shard files atomically, and in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from combicam.engine.shards.map_format import MapFormat
from combicam.engine.shards.row_format import ShardFormat
from combicam.engine.storage.atomic import commit, remove, sync, temporary_path
from combicam.engine.storage.paths import arrow_file, is_remote

_GROUP_BYTES = 16 * 2**20
_DICTIONARY = ["status", "error", "decoder", "class_name", "s2_token"]
# Statistics of heatmaps are useless, and cost a comparison of every byte.
_STATISTICS = ["id", "uri", "status", "width", "height", "class_name", "lat", "lon", "error_km"]


class ShardWriter:
    """Writes one shard, batch by batch; the file appears on :meth:`commit`.

    Row groups have a fixed number of rows, so the bytes do not depend on batch sizes and order.
    Memory holds a row group, and the rows that came before their turn.

    Args:
        path: of the shard, in an existing folder.
        shard_format: columns and metadata.
        folder: where it is written before it appears; default: where it appears.
        kept: rows that the shard has, too: tables with their indices, in ascending order; each is
            taken when its turn comes.
    """

    def __init__(
        self,
        path: Path,
        shard_format: ShardFormat,
        folder: Path | None = None,
        kept: Iterable[tuple[Any, Sequence[int]]] = (),
    ) -> None:
        self._path, self._folder = path, folder
        schema = shard_format.schema()
        self._group_rows = max(1, _GROUP_BYTES // _row_bytes(shard_format.maps))
        self._waiting: Any = schema.empty_table()
        self._early: dict[int, Any] = {}  # first row -> rows that follow each other
        self._kept = iter(kept)
        self._added = self._turn = 0
        self._finished = False
        self._early_kept = -1  # the last of the kept rows that were taken
        name, system = arrow_file(temporary_path(path, folder))
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
        """Append rows; those that arrive early are kept until it is their turn.

        Args:
            table: of :class:`ShardFormat`.
            rows: their indices in the shard; default: the next ones.
        """
        self._set_aside(table, rows or range(self._added, self._added + table.num_rows))
        self._added += table.num_rows
        self._take_turns()

    def _set_aside(self, table: Any, rows: Sequence[int]) -> None:
        numbers = np.asarray(rows)
        order = np.argsort(numbers)
        if (np.diff(order) != 1).any():
            table, numbers = table.take(order), numbers[order]
        ends = [*(np.flatnonzero(np.diff(numbers) != 1) + 1), len(numbers)]
        for start, end in itertools.pairwise([0, *ends]):
            if end > start:
                self._early[int(numbers[start])] = table.slice(start, end - start)

    def _take_turns(self) -> None:
        while self._turn in self._early or self._take_kept():
            if (table := self._early.pop(self._turn, None)) is not None:
                self._turn += table.num_rows
                self._append(table)

    def _take_kept(self) -> bool:
        """Set the next kept rows aside, unless they are still to come after others."""
        if self._early_kept > self._turn:
            return False
        table, rows = next(self._kept, (None, ()))
        if table is None:
            return False
        self._set_aside(table, rows)
        self._early_kept = max(rows, default=self._early_kept)
        return True

    def _append(self, table: Any) -> None:
        self._waiting = pa.concat_tables([self._waiting, table])
        while self._waiting.num_rows >= self._group_rows:
            self._write(self._waiting.slice(0, self._group_rows))
            self._waiting = self._waiting.slice(self._group_rows)

    def finish(self) -> None:
        """Write the remaining rows, to the disk: all that takes long of a commit."""
        self._finished = True
        self._take_turns()
        for start in sorted(self._early):  # behind rows that nobody added
            self._append(self._early.pop(start))
        if self._waiting.num_rows:
            self._write(self._waiting)
        self._writer.close()
        if not is_remote(self._path):
            sync(temporary_path(self._path, self._folder))

    def commit(self) -> None:
        """Commit the file durably."""
        if not self._finished:
            self.finish()
        commit(self._path, self._folder)

    def _write(self, group: Any) -> None:
        # Pages end with chunks, which are batches: one chunk makes the bytes independent of them.
        self._writer.write_table(group.combine_chunks())

    def discard(self) -> None:
        """Delete the temporary file."""
        with suppress(OSError, pa.ArrowException):  # of a full disk
            self._writer.close()
        remove(temporary_path(self._path, self._folder))


def _row_bytes(maps: MapFormat) -> int:
    """Bytes of a row's maps; an estimate if they vary."""
    sizes = [maps.size or (256, 256), *maps.layer_sizes]
    return maps.targets * sum(h * w for h, w in sizes)
