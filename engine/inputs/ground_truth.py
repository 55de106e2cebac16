"""Read where images were taken, from columns of an input list or from a separate file."""

from __future__ import annotations

import codecs
import csv
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from combicam.engine.inputs.entry import Entry
from combicam.engine.storage.paths import open_parquet
from combicam.export.classes.tables import readable

# The first pair that a list has is read. A run's own rows have the first and the last pair.
PLACE_COLUMNS = (
    ("true_lat", "true_lon"),
    ("latitude", "longitude"),
    ("lat", "lon"),
    ("lat", "lng"),
    ("latitude", "lng"),
)
_NONE = frozenset({"", "na", "n/a", "nan", "none", "null"})

Place = tuple[float | None, float | None]


def place_columns(names: Iterable[str], source: object) -> tuple[str, str] | None:
    """The ground truth columns of a list; None if it has none.

    Raises:
        ValueError: a latitude without a longitude, or the reverse.
    """
    known = set(names)
    for latitude, longitude in PLACE_COLUMNS:
        if {latitude, longitude} <= known:
            return latitude, longitude
    half = known & {name for pair in PLACE_COLUMNS for name in pair}
    if half:
        raise ValueError(
            f"list inputs: expected {source} to have latitudes and longitudes, or neither, got "
            f"{', '.join(sorted(half))} alone; the columns are "
            f"{', or '.join(' and '.join(pair) for pair in PLACE_COLUMNS)}"
        )
    return None


def read_place(latitude: Any, longitude: Any, where: str) -> Place:
    """Parse a location, degrees; (None, None) if a row has none.

    Args:
        latitude, longitude: numbers, or text; empty, ``NA``, ``null``, NaN, … for none.
        where: name of the row for errors.

    Raises:
        ValueError: one without the other, not numbers, or not on Earth.
    """
    lat, lon = (_number(value, where) for value in (latitude, longitude))
    if lat is None and lon is None:
        return None, None
    if lat is None or lon is None or abs(lat) > 90 or abs(lon) > 180:
        raise ValueError(
            f"ground truth: expected latitude in [-90, 90] and longitude in [-180, 180] or "
            f"neither, got {latitude!r} and {longitude!r} in {where}"
        )
    return lat, lon


def _number(value: Any, where: str) -> float | None:
    if value is None or str(value).strip().lower() in _NONE:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"ground truth: expected degrees, got {value!r} in {where}; leave it empty if it is "
            "unknown"
        ) from error
    return None if math.isnan(number) else number


def read_truth(path: Path) -> dict[str, Place]:
    """Read a CSV, TSV or Parquet file with columns ``id`` and a pair of :data:`PLACE_COLUMNS`.

    Raises:
        ValueError: missing columns, a missing or repeated id, or an invalid location.
        RunError: a damaged Parquet file.
        FileNotFoundError: no such file.
    """
    truth: dict[str, Place] = {}
    with readable(path, "ground truth"):
        for number, (identity, latitude, longitude) in enumerate(_rows(path), 1):
            where = f"row {number} of {path}"
            if identity in (None, ""):
                raise ValueError(f"ground truth: expected an id in {where}, got none; remove it")
            if str(identity) in truth:
                raise ValueError(
                    f"ground truth: expected unique ids, got {identity!r} again in {where}; "
                    "remove one"
                )
            truth[str(identity)] = read_place(latitude, longitude, where)
    return truth


def _rows(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    if path.suffix.lower() in (".parquet", ".pq"):
        with open_parquet(path) as file:
            columns = _columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(columns=list(columns)):
                yield from zip(*(batch.column(n).to_pylist() for n in columns), strict=True)
        return
    with path.open(newline="", encoding=text_encoding(path)) as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        columns = _columns(reader.fieldnames or (), path)
        for row in reader:
            identity, latitude, longitude = (row[name] for name in columns)
            yield identity, latitude, longitude


def text_encoding(path: Path) -> str:
    """``utf-16`` if a text begins with its mark, as Windows writes it; otherwise ``utf-8-sig``."""
    with path.open("rb") as file:
        mark = file.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _columns(names: Iterable[str], path: Path) -> tuple[str, str, str]:
    names = list(names)
    pair = place_columns(names, path)
    if pair is None or "id" not in names:
        raise ValueError(
            f"ground truth: expected {path} to have the columns id and "
            f"{', or '.join(' and '.join(pair) for pair in PLACE_COLUMNS)}, got {names}"
        )
    return "id", *pair


def with_truth(entries: Iterable[Entry], truth: Mapping[str, Place]) -> Iterator[Entry]:
    """Add the locations of ``truth`` to entries.

    Raises:
        ValueError: it has none of the entries.
    """
    count, first = 0, None
    for entry in entries:
        first = entry.id if first is None else first
        if entry.id in truth:
            count += 1
            lat, lon = truth[entry.id]
            entry = replace(entry, true_lat=lat, true_lon=lon)
        yield entry
    if count == 0:
        refuse_strangers(first, truth)


def refuse_strangers(first: str | None, truth: Mapping[str, Place]) -> None:
    """Raise an error because the ground truth is of other images.

    Args:
        first: id of the first image; None if there is no image.
        truth: has none of the images' ids.

    Raises:
        ValueError: if there is an image.
    """
    if first is not None:
        raise ValueError(
            f"ground truth: expected ids of the inputs, such as {first!r}, got none of them; the "
            f"file has {', '.join(map(repr, list(truth)[:3])) or 'no rows'}"
        )


def truth_digest(path: Path | None) -> str | None:
    """SHA-256 of the file's bytes; None without a file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
