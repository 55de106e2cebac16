"""Read lists of images: text, CSV, TSV, JSON lines, Parquet and Arrow."""

from __future__ import annotations

import codecs
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from combicam.engine.inputs.entry import Entry, path_uri, printable, uri_path
from combicam.engine.inputs.ground_truth import place_columns, read_place, text_encoding
from combicam.engine.inputs.table_images import ARROW, image_column, intact, open_arrow
from combicam.engine.storage.paths import damage_named, is_remote, open_parquet

TEXT_SUFFIXES = (".txt", ".lst", ".list")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
LIST_SUFFIXES = (*TEXT_SUFFIXES, *TABLE_SUFFIXES, *PARQUET_SUFFIXES, ARROW)
PATH_COLUMNS = (
    *("uri", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path"),
    *("image", "img"),
)
_CHUNK = 4096

Row = Mapping[str, Any]


def list_entries(path: Path, name: str) -> Iterator[Entry]:
    """Entries of a list's rows, in order.

    A row without a path is an input, too: a missing one.

    Args:
        path: of the list; its suffix is one of :data:`LIST_SUFFIXES`.
        name: of the list in ids of images that it contains (``name::row``).

    Raises:
        ValueError: no column of paths or images, an unsupported store, or a damaged list.
        RunError: a damaged Parquet file.
    """
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return _entries(path, ["path"], ({"path": line} for line in _lines(path)))
    if suffix in (".csv", ".tsv"):
        return _csv_entries(path, "\t" if suffix == ".tsv" else ",")
    if suffix in TABLE_SUFFIXES:
        return _json_entries(path)
    return _table_entries(path, name)


def _entries(path: Path, names: Iterable[str], rows: Iterable[Row]) -> Iterator[Entry]:
    """Entries of the rows of the list at ``path``, which has these columns."""
    names = list(names)
    column, place = _path_column(path, names), place_columns(names, path) or ("", "")
    for number, row in enumerate(rows, 1):
        value, identity = row.get(column), row.get("id")
        name = os.fsdecode(value) if isinstance(value, (str, bytes)) else ""
        has_id = identity is not None and identity != ""
        lat, lon = read_place(row.get(place[0]), row.get(place[1]), f"row {number} of {path}")
        yield Entry(
            printable(_text(identity) if has_id else name or f"row {number}"),
            path_uri(_named(path, number, name)) if name else "",
            true_lat=lat,
            true_lon=lon,
        )


def _named(source: Path, number: int, name: str) -> Path:
    """The path that a row of a list names."""
    try:
        path = uri_path(name)
    except ValueError as error:
        raise ValueError(
            f"list inputs: expected paths, file:// or a supported store, got {name!r} in row "
            f"{number} of {source}; download it first"
        ) from error
    return path if is_remote(path) or path.is_absolute() else source.parent / str(path)


def _path_column(path: Path, names: Iterable[str]) -> str:
    names = list(names)
    for column in PATH_COLUMNS:
        if column in names:
            return column
    raise ValueError(
        f"list inputs: expected {path} to have a column {', '.join(PATH_COLUMNS)}, got {names}"
    )


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text that are not empty; names may be of any bytes, unless it is UTF-16."""
    encoding = text_encoding(path)
    if encoding == "utf-16":
        with path.open(encoding=encoding) as text:
            yield from (line for line in map(_bare, text) if line)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file):
            line = line if number else line.removeprefix(codecs.BOM_UTF8)
            name = os.fsdecode(line.rstrip(b"\r\n"))
            if name:
                yield name


def _bare(line: str) -> str:
    return line.rstrip("\r\n")


def _csv_entries(path: Path, delimiter: str) -> Iterator[Entry]:
    encoding = text_encoding(path)
    with path.open(newline="", encoding=encoding, errors="surrogateescape") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        try:
            yield from _entries(path, reader.fieldnames or (), reader)
        except (csv.Error, UnicodeError) as error:
            raise ValueError(f"list inputs: expected {path} to be CSV, got: {error}") from error


def _json_entries(path: Path) -> Iterator[Entry]:
    """Entries of a file with a JSON object a line; the first one's keys are the columns."""
    rows = _json_rows(path)
    first = next(rows, {})

    def all_rows() -> Iterator[Row]:
        yield first
        yield from rows

    if first:
        yield from _entries(path, first, all_rows())


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding=text_encoding(path), errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _not_json(path, number, str(error)) from error
            if not isinstance(row, dict):
                raise _not_json(path, number, type(row).__name__)
            yield row


def _not_json(path: Path, number: int, got: str) -> ValueError:
    return ValueError(
        f"list inputs: expected a JSON object in line {number} of {path}, got: {got}; correct or "
        "remove the line"
    )


def _table_entries(path: Path, name: str) -> Iterator[Entry]:
    with _Table(path) as table:
        names = table.schema.names
        place = place_columns(names, path) or ("", "")
        known = [column for column in ("id", *place) if column in names]
        if image_column(table.schema) is None:
            yield from _entries(path, names, table.rows([_path_column(path, names), *known]))
            return
        uri = path_uri(path)
        for number, row in enumerate(table.rows(known)):
            identity = row.get("id")
            has_id = identity is not None and identity != ""
            where = f"row {number + 1} of {path}"
            lat, lon = read_place(row.get(place[0]), row.get(place[1]), where)
            yield Entry(
                printable(_text(identity)) if has_id else f"{name}::{number}",
                uri,
                offset=number,
                true_lat=lat,
                true_lon=lon,
            )


class _Table:
    """A Parquet or an Arrow file, opened to read some columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_arrow = path.suffix.lower() == ARROW
        self._file: Any = open_arrow(path) if self._is_arrow else open_parquet(path)

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_arrow:
            self._file.close()

    @property
    def schema(self) -> Any:
        return self._file.schema if self._is_arrow else self._file.schema_arrow

    def rows(self, columns: list[str]) -> Iterator[Row]:
        """The rows of some columns.

        Raises:
            RunError: a damaged file.
        """
        with damage_named(self._path):
            if not columns:
                count = (self._file if self._is_arrow else self._file.metadata).num_rows
                yield from ({} for _ in range(count))
                return
            if self._is_arrow:
                batches = intact(self._file.select(columns)).to_batches(_CHUNK)
            else:
                batches = self._file.iter_batches(_CHUNK, columns=columns)
            for batch in batches:
                values = [_values(column) for column in batch.columns]
                for row in zip(*values, strict=True):
                    yield dict(zip(batch.schema.names, row, strict=True))


def _text(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _values(column: Any) -> list[Any]:
    """The values of a column; text that is not UTF-8 as bytes, as names of files may be."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(pa.binary()).to_pylist())
