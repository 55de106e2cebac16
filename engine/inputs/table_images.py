"""Find and read encoded images in the columns of Parquet and Arrow files."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from combicam.engine.storage.paths import is_remote, open_parquet
from combicam.errors import RunError

ARROW = ".arrow"
# Names of columns of bytes; structs {bytes, path} of Hugging Face may have any name.
BYTES_COLUMNS = ("image", "img", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content")
_OPEN_FILES = 8
_ROWS, _REMEMBERED = 16, 64 * 2**20


def image_column(schema: Any) -> str | None:
    """The column of a table that has encoded images; None if there is none.

    Args:
        schema: of pyarrow.
    """
    structs = [field.name for field in schema if _is_image(field.type)]
    named = [name for name in BYTES_COLUMNS if name in schema.names]
    for name in (*named, *structs):
        if name in structs or _is_bytes(schema.field(name).type):
            return name
    return None


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image(kind: Any) -> bool:
    if not pa.types.is_struct(kind):
        return False
    return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


@dataclass(frozen=True)
class TableImage:
    """An image in a table: its bytes, or the path of its file; both None in an empty row."""

    data: bytes | None
    path: str | None


def read_image(path: Path, row: int) -> TableImage:
    """Read the image of a row; fast if rows are read in nearly their order.

    Raises:
        OSError: a missing or damaged file, or one without that row.
    """
    status = None if is_remote(path) else path.stat()
    version = None if status is None else (status.st_mtime_ns, status.st_size)
    try:
        value = _images(path, version)[row]
    except (RunError, pa.ArrowException, IndexError) as error:
        raise OSError(f"expected row {row} of {path}, got {type(error).__name__}") from error
    if not isinstance(value, pa.StructScalar):
        return TableImage(value.as_py(), None)
    data = value["bytes"].as_py() if value.is_valid else None
    named = value["path"] if value.is_valid and "path" in value else None
    if data is not None or named is None or not named.is_valid:
        return TableImage(data, None)
    return TableImage(None, os.fsdecode(named.as_buffer().to_pybytes()))  # UTF-8 or not


@lru_cache(_OPEN_FILES)
def _images(path: Path, version: tuple[int, int] | None) -> ArrowImages | ParquetImages:
    return ArrowImages(path) if path.suffix == ARROW else ParquetImages(path)


class ArrowImages:
    """Images of an Arrow file of this machine, which is not read but mapped into memory."""

    def __init__(self, path: Path) -> None:
        table = open_arrow(path)
        self._column = intact(table.select([image_column(table.schema)])).column(0)

    def __getitem__(self, row: int) -> Any:
        return self._column[row]


def open_arrow(path: Path) -> Any:
    """A mapped ``pyarrow.Table`` of an Arrow file: a stream, as Hugging Face writes, or a file.

    Raises:
        OSError: no such file, or a damaged one.
    """
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def intact(table: Any) -> Any:
    """A mapped table whose offsets are checked: Arrow would follow wrong ones anywhere.

    Raises:
        pyarrow.ArrowInvalid: it is damaged.
    """
    table.validate(full=True)
    return table


class ParquetImages:
    """Images of a Parquet file, read some rows at a time; from several threads.

    The last megabytes are remembered, because threads ask in nearly the file's order.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_parquet(path)
        self._lock = Lock()
        self._rows: deque[tuple[int, Any, int]] = deque()  # first row, images, bytes
        self._batches: Iterator[Any]
        self._next: int
        self._is_broken = False  # the last row could not be read; others may be intact
        self._begin(0)

    @cached_property
    def _ends(self) -> list[int]:
        metadata = self._file.metadata
        return list(
            accumulate(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        )

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self._file.metadata.num_rows:
            raise IndexError(row)
        with self._lock:
            before = bool(self._rows) and row < self._rows[0][0]
            if before or self._is_broken or self._group(row) > self._group(self._next) + 1:
                self._begin(row)
            try:
                self._read_to(row)
            except (OSError, pa.ArrowException, IndexError):
                if self._group(row) == self._group(self._next):
                    raise
                self._begin(row)  # the damage was before its row group
                self._read_to(row)
            for first, images, _ in self._rows:
                if first <= row < first + len(images):
                    return images[row - first]
        raise IndexError(row)

    def _read_to(self, row: int) -> None:
        self._is_broken = True
        while row >= self._next:
            self._read()
        self._is_broken = False

    def _group(self, row: int) -> int:
        return bisect_right(self._ends, row)

    def _begin(self, row: int) -> None:
        """Read from the first row of the row group on."""
        group = self._group(row)
        self._rows.clear()
        self._next = self._ends[group - 1] if group else 0
        column = image_column(self._file.schema_arrow)
        # One row group after another: a batch of two would fail if either is damaged.
        self._batches = chain.from_iterable(
            self._file.iter_batches(_ROWS, [index], [column])
            for index in range(group, len(self._ends))
        )

    def _read(self) -> None:
        batch = next(self._batches, None)
        if batch is None:  # fewer rows than the file says
            raise IndexError(self._next)
        images = batch.column(0)
        self._rows.append((self._next, images, images.nbytes))
        self._next += len(images)
        while len(self._rows) > 2 and sum(size for *_, size in self._rows) > _REMEMBERED:
            self._rows.popleft()
