"""Read where photos were taken, from columns of a list or a file of their own."""

from __future__ import annotations

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

# The first pair that a list has. A run's own rows come with the first and the last.
PLACE_COLUMNS = (("true_lat", "true_lon"), ("latitude", "longitude"), ("lat", "lon"))
_NONE = frozenset({"", "na", "n/a", "nan", "none", "null"})

Place = tuple[float | None, float | None]


def place_columns(names: Iterable[str], source: object) -> tuple[str, str] | None:
    """Which columns of a list say where photos were taken; None where none do.

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
    """A place, degrees; (None, None) where a row leaves it out.

    Args:
        latitude, longitude: numbers, or text; empty, ``NA``, ``null``, NaN, … for none.
        where: what errors call the row.

    Raises:
        ValueError: one without the other, no numbers, or not on Earth.
    """
    lat, lon = (_number(value, where) for value in (latitude, longitude))
    if lat is None and lon is None:
        return None, None
    if lat is None or lon is None or abs(lat) > 90 or abs(lon) > 180:
        raise ValueError(
            f"true place: expected latitude in [-90, 90] and longitude in [-180, 180], or neither, "
            f"got {latitude!r} and {longitude!r} in {where}"
        )
    return lat, lon


def _number(value: Any, where: str) -> float | None:
    if value is None or str(value).strip().lower() in _NONE:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"true place: expected degrees, got {value!r} in {where}; leave it empty where it is "
            "not known"
        ) from error
    return None if math.isnan(number) else number


def read_truth(path: Path) -> dict[str, Place]:
    """Read a CSV or Parquet file with columns ``id`` and a pair of :data:`PLACE_COLUMNS`.

    Raises:
        ValueError: no such columns, no id, an id twice, or a place that is none.
        RunError: a damaged Parquet file.
        FileNotFoundError: no such file.
    """
    truth: dict[str, Place] = {}
    with readable(path, "true places"):
        for number, (identity, latitude, longitude) in enumerate(_rows(path), 1):
            where = f"row {number} of {path}"
            if identity in (None, ""):
                raise ValueError(f"true places: expected an id in {where}, got none; remove it")
            if str(identity) in truth:
                raise ValueError(
                    f"true places: expected unique ids, got {identity!r} again in {where}; "
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
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = _columns(reader.fieldnames or (), path)
        for row in reader:
            identity, latitude, longitude = (row[name] for name in columns)
            yield identity, latitude, longitude


def _columns(names: Iterable[str], path: Path) -> tuple[str, str, str]:
    names = list(names)
    pair = place_columns(names, path)
    if pair is None or "id" not in names:
        raise ValueError(
            f"true places: expected {path} to have the columns id and "
            f"{', or '.join(' and '.join(pair) for pair in PLACE_COLUMNS)}, got {names}"
        )
    return "id", *pair


def with_truth(entries: Iterable[Entry], truth: Mapping[str, Place]) -> Iterator[Entry]:
    """The same entries, those that ``truth`` knows at their true places.

    Raises:
        ValueError: it knows none of them.
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
    """Say that true places are of other photos.

    Args:
        first: id of the first photo; None where there is no photo.
        truth: none of whose ids is a photo's.

    Raises:
        ValueError: always where there is a photo.
    """
    if first is not None:
        raise ValueError(
            f"true places: expected ids of the inputs, such as {first!r}, got none of them; the "
            f"file has {', '.join(map(repr, list(truth)[:3])) or 'no rows'}"
        )


def truth_digest(path: Path | None) -> str | None:
    """SHA-256 of the file's bytes; None without a file."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
