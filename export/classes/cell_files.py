"""Read and write files of classes and cells: CSV, Parquet, and pickled locations."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from combicam.errors import first_line
from combicam.export.classes import places, s2
from combicam.export.classes.cells import CellTable
from combicam.export.classes.classes import COLUMNS, ClassTable
from combicam.export.classes.name_files import (
    IMAGENET,
    NAME_SUFFIXES,
    imagenet_names,
    read_names,
)
from combicam.export.classes.safe_pickle import load_numbers
from combicam.export.classes.tables import readable

PARQUET_SUFFIXES = (".parquet", ".pq")
PICKLE_SUFFIXES = (".pkl", ".pickle")
# Column names of GeoEstimation and of a run's rows -> ours.
_OTHER_NAMES = {
    "class_label": "class",
    "hex_id": "s2_token",
    "latitude_mean": "latitude",
    "longitude_mean": "longitude",
    "lat": "latitude",
    "lon": "longitude",
}
_OF_PLACES = {"latitude", "longitude", "s2_token"}
_GREATEST_PREAMBLE = 100  # lines before the header


def read_classes(path: str | Path) -> ClassTable:
    """Read the file of ``--classes``.

    Args:
        path: CSV or Parquet with the columns ``class,name,latitude,longitude,s2_token`` (``class``
            and at least one more); the CSV of GeoEstimation's cells
            (``class_label,hex_id,imgs_per_cell,latitude_mean,longitude_mean``), with or without
            lines before its header; a pickled list of (latitude, longitude), class by class; names
            alone as JSON or text (:func:`~combicam.export.classes.name_files.read_names`); or
            ``imagenet``, whose names timm has. Without latitude and longitude, the centres of the
            S2 cells are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a missing column or an invalid value; the message names its row.
        ModelError: a pickle with anything but numbers.
    """
    path = Path(path)
    if str(path) == IMAGENET and not path.exists():
        return ClassTable(names=imagenet_names())
    if path.suffix.lower() in NAME_SUFFIXES:
        with readable(path, "classes"):
            return ClassTable(names=read_names(path))
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return _from_pickle(path).to_classes()
    read = _parquet_rows if path.suffix.lower() in PARQUET_SUFFIXES else _csv_rows
    with readable(path, "classes"):
        rows = list(read(path))
    rows.sort(key=lambda row: row.index)
    wrong = next((row for i, row in enumerate(rows) if row.index != i), None)
    if not rows or wrong is not None:
        got = f"{wrong.index} in {wrong.where}" if wrong is not None else "no row"
        raise ValueError(
            f"classes: expected {path} to have the classes 0..{len(rows) - 1}, each once, got {got}"
        )
    if rows[0].values.keys() & _OF_PLACES:
        return _cells(rows).to_classes()
    return ClassTable(names=_names(rows))


def read_cells(path: str | Path) -> CellTable:
    """Read the cells of a model's classes; see :func:`read_classes`.

    Raises:
        ValueError: also if the file has no locations.
    """
    return CellTable.from_classes(read_classes(path))


def write_cells(cells: CellTable, path: str | Path) -> None:
    """Write cells as a CSV file that :func:`read_cells` reads.

    Args:
        cells: of n classes.
        path: of the new file.
    """
    columns: dict[str, Sequence[Any]] = {
        "class": range(len(cells)),
        "name": cells.names,
        "latitude": cells.latitudes.tolist(),
        "longitude": cells.longitudes.tolist(),
        "s2_token": cells.tokens,
    }
    known = {name: column for name, column in columns.items() if len(column)}
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(known)
        writer.writerows(zip(*known.values(), strict=True))


@dataclass(frozen=True)
class _Row:
    """A class as read from a file; ``where`` describes its row in messages."""

    index: int
    where: str
    values: Mapping[str, Any]

    def number(self, column: str) -> float:
        try:
            return float(self.values[column])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"classes: expected a number as {column} in {self.where}, got "
                f"{self.values.get(column)!r}"
            ) from error

    def cell(self) -> int:
        token = self.values["s2_token"] or ""
        try:
            if not isinstance(token, str):
                raise ValueError(
                    f"expected an S2 token as text, got {token!r}: zeros at the start of a number "
                    "are lost"
                )
            return s2.cell_id(token)
        except ValueError as error:
            raise ValueError(f"classes: {self.where}: {error}") from error


def _csv_rows(path: Path) -> Iterator[_Row]:
    # utf-8-sig: spreadsheets write a byte order mark, which csv would read as part of a name.
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(
            (names for names, _ in zip(reader, range(_GREATEST_PREAMBLE), strict=False)
             if {"class", "class_label"} & {name.strip() for name in names}),
            [],
        )  # fmt: skip
        names = _columns(header, path)
        for values in reader:
            if values:
                where = f"row {reader.line_num} of {path}"
                if len(values) != len(names):
                    raise ValueError(
                        f"classes: expected {len(names)} values in {where}, got {len(values)}"
                    )
                yield _row(dict(zip(names, values, strict=True)), where)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    with pq.ParquetFile(path) as file:
        table = file.read()
    table = table.rename_columns(_columns(table.column_names, path))
    known = [name for name in COLUMNS if name in table.column_names]
    for i, values in enumerate(table.select(known).to_pylist(), 1):
        yield _row(values, f"row {i} of {path}")


def _columns(header: Sequence[str], path: Path) -> list[str]:
    """A file's columns, by our names."""
    names = [_OTHER_NAMES.get(name.strip(), name.strip()) for name in header]
    known = [name for name in names if name in COLUMNS]
    if "class" not in known or len(known) == 1 or len(set(known)) < len(known):
        raise ValueError(
            f"classes: expected {path} to have the columns {','.join(COLUMNS)}, class and at least "
            "one more, each once, got "
            f"{','.join(header) or 'no header with class or class_label'}"
        )
    return names


def _row(values: dict[str, Any], where: str) -> _Row:
    row = _Row(0, where, values)
    number = row.number("class")
    if not number.is_integer():
        raise ValueError(f"classes: expected a whole number as class in {where}, got {number:g}")
    return replace(row, index=int(number))


def _names(rows: Sequence[_Row]) -> tuple[str, ...]:
    return tuple(str(row.values["name"] or "") for row in rows) if "name" in rows[0].values else ()


def _cells(rows: Sequence[_Row]) -> CellTable:
    """Cells from rows in the order of their classes."""
    ids = np.empty(0, np.uint64)
    has_places = bool(rows[0].values.keys() & {"latitude", "longitude"})
    if not has_places or any(row.values.get("s2_token") for row in rows):
        ids = np.array([row.cell() for row in rows], np.uint64)
    if not has_places:
        return CellTable(*s2.centers(ids), ids, _names(rows))
    lat = np.array([row.number("latitude") for row in rows])
    lon = np.array([row.number("longitude") for row in rows])
    for row, y, x in zip(rows, lat, lon, strict=True):
        places.check_places([y], [x], f"classes: {row.where}")
    if len(ids):
        lon = _fixed_at_meridian(rows, ids, lat, lon)
    return CellTable(lat, lon, ids, _names(rows))


def _fixed_at_meridian(rows: Sequence[_Row], ids: s2.Ids, lat: Any, lon: Any) -> Any:
    """Longitudes of the classes, fixed at the 180th meridian.

    A mean of longitudes on both sides of the meridian lies far from the cell; it is replaced by
    the longitude of the cell's centre.

    Raises:
        ValueError: another location is not near its cell.
    """
    center_lat, center_lon = s2.centers(ids)
    reach = s2.DIAGONAL * 0.5 ** s2.levels(ids)

    def is_near(longitudes: Any) -> Any:
        angles = places.angles(lat, longitudes, center_lat, center_lon)
        return angles <= reach

    near = is_near(lon)
    # Cells that may cross the meridian, or contain a pole.
    width = np.degrees(reach) / np.maximum(np.cos(np.radians(center_lat)), 1e-9)
    fixed = np.where(~near & (np.abs(center_lon) + width >= 180), center_lon, lon)
    lost = np.flatnonzero(~is_near(fixed))
    if len(lost):
        i = int(lost[0])
        raise ValueError(
            f"classes: {rows[i].where}: expected a location in its S2 cell, got {lat[i]:.4f},"
            f"{lon[i]:.4f} for {rows[i].values['s2_token']}, whose centre is at "
            f"{center_lat[i]:.4f},{center_lon[i]:.4f}: a spreadsheet that reads a token as a "
            "number drops its leading zeros; use the original file"
        )
    return fixed


def _from_pickle(path: Path) -> CellTable:
    content = load_numbers(path)
    try:
        pairs = np.array([(float(lat), float(lon)) for lat, lon in content])
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"classes: expected {path} to be a list of (latitude, longitude) in degrees, got "
            f"{type(content).__name__} ({first_line(error)})"
        ) from error
    if not len(pairs):
        raise ValueError(
            f"classes: expected {path} to have a location per class, got an empty list"
        )
    places.check_places(pairs[:, 0], pairs[:, 1], f"classes: {path}")
    return CellTable(pairs[:, 0], pairs[:, 1])
