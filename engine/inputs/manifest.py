"""Write and read the manifest: every input of a run, in order, with its shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from combicam.engine.inputs.entry import Entry
from combicam.engine.inputs.selection import IMAGE_SUFFIXES, Tally, ignored_words
from combicam.engine.storage.new_file import new_file
from combicam.engine.storage.paths import arrow_file, open_parquet

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("true_lat", pa.float64()),
        pa.field("true_lon", pa.float64()),
    ]
)
_IGNORED = b"combicam.ignored"
_TRUTH = ["true_lat", "true_lon"]
_CHUNK = 65536


def write_manifest(
    path: Path, entries: Iterable[Entry], shard_size: int, tally: Tally | None = None
) -> None:
    """Write ``manifest.parquet`` atomically; row group i is shard i.

    It has the columns ``true_lat`` and ``true_lon`` if an entry has ground truth.

    Args:
        path: of the manifest.
        entries: all inputs, in order.
        shard_size: inputs of a shard.
        tally: what the listing of ``entries`` leaves out; kept in the metadata.

    Raises:
        ValueError: no entries, or two with the same id.
    """
    table = pa.Table.from_batches(_batches(entries, shard_size), SCHEMA)
    ignored = {} if tally is None else dict(tally.ignored)
    if table.num_rows == 0:
        others = f", but {ignored_words(ignored)} other files" if ignored else ""
        raise ValueError(
            f"list inputs: expected at least one image, got none{others}; folders, globs and tars "
            f"are searched for {' '.join(sorted(IMAGE_SUFFIXES))}, and for files without a suffix "
            "that begin like images"
        )
    _check_unique(table)
    if table.column("true_lat").null_count == table.num_rows:
        table = table.drop_columns(_TRUTH)
    if ignored:
        table = table.replace_schema_metadata({_IGNORED: json.dumps(ignored)})
    with new_file(path, "run") as temporary:
        name, system = arrow_file(temporary)
        with pq.ParquetWriter(name, table.schema, filesystem=system, compression="zstd") as writer:
            writer.write_table(table, row_group_size=shard_size)


def _batches(entries: Iterable[Entry], shard_size: int) -> Iterator[Any]:
    """Entries as record batches: columns of millions of entries are small, objects are not."""
    entries = iter(entries)
    start = 0
    while chunk := list(islice(entries, _CHUNK)):
        columns = {
            "id": [entry.id for entry in chunk],
            "uri": [entry.uri for entry in chunk],
            "offset": [entry.offset for entry in chunk],
            "size": [entry.size for entry in chunk],
            "shard": [(start + i) // shard_size for i in range(len(chunk))],
            "true_lat": [entry.true_lat for entry in chunk],
            "true_lon": [entry.true_lon for entry in chunk],
        }
        yield pa.RecordBatch.from_pydict(columns, SCHEMA)
        start += len(chunk)


def _check_unique(table: Any) -> None:
    counts = table.column("id").cast(pa.large_string()).value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated) == 0:
        return
    name = repeated[0]["values"].as_py()
    rows = pc.indices_nonzero(pc.equal(table.column("id"), name)).to_pylist()[:2]
    places = []
    for row in rows:
        uri, offset = (table.column(key)[row].as_py() for key in ("uri", "offset"))
        places.append(f"input {row + 1}: {uri}" + ("" if offset is None else f" at byte {offset}"))
    raise ValueError(
        f"list inputs: expected unique ids, got {name!r} twice ({'; '.join(places)}); "
        "remove one, or give ids in an id column of a list"
    )


class Manifest:
    """A written manifest; shards are read on demand, so memory does not grow with the run."""

    def __init__(self, path: Path) -> None:
        self._file = open_parquet(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def images(self) -> int:
        """Number of inputs."""
        return int(self._file.metadata.num_rows)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return int(self._file.metadata.num_row_groups)

    @property
    def has_truth(self) -> bool:
        """Whether some inputs have ground truth."""
        return set(_TRUTH) <= set(self._file.schema_arrow.names)

    @property
    def ignored(self) -> dict[str, int]:
        """What the listing left out: suffix, or reason -> number of files."""
        metadata = self._file.schema_arrow.metadata or {}
        ignored: dict[str, int] = json.loads(metadata.get(_IGNORED, b"{}"))
        return ignored

    def shard_images(self, index: int) -> int:
        """Number of inputs of a shard."""
        return int(self._file.metadata.row_group(index).num_rows)

    def shard(self, index: int) -> list[Entry]:
        """A shard's inputs, in order."""
        names = ["id", "uri", "offset", "size", *(_TRUTH if self.has_truth else ())]
        columns = self._file.read_row_group(index, columns=names)
        return [Entry(**row) for row in columns.to_pylist()]

    def difference(self, entries: Iterable[Entry]) -> str | None:
        """Describe how a listing differs from this manifest; None if it does not.

        Args:
            entries: of the listing, in order; streamed.
        """
        now, first = 0, None
        ids = self._ids()
        for entry in entries:
            now += 1
            if first is None and entry.id != (listed := next(ids, None)):
                first = entry.id if listed is None else min(entry.id, listed)
        if first is None and now == self.images:
            return None
        first = first if first is not None else next(ids)
        return f"{self.images:,} then, {now:,} now, the first that differs is {first}"

    def _ids(self) -> Iterator[str]:
        for index in range(self.shards):
            yield from self._file.read_row_group(index, columns=["id"]).column("id").to_pylist()
