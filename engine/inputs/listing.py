"""List a run's inputs: a folder, a glob, a list of paths, or tars."""

from __future__ import annotations

import codecs
import csv
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from combicam.engine.inputs.entry import Entry, path_uri, printable, uri_path
from combicam.engine.inputs.ground_truth import place_columns, read_place
from combicam.engine.inputs.tar import tar_entries
from combicam.engine.storage.paths import is_remote, location, open_parquet

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm .jp2 .avif".split()
)
TEXT_SUFFIXES = (".txt", ".lst", ".list")
PARQUET_SUFFIXES = (".parquet", ".pq")
PATH_COLUMNS = ("uri", "path", "file", "filename")
# Path, id, latitude and longitude of a row in a list.
_Row = tuple[Any, Any, Any, Any]
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def list_inputs(source: str) -> Iterator[Entry]:
    """Every input of a run, in a fixed order.

    Folders, globs and tars are sorted by path; members of a tar and lists keep their order.

    Args:
        source: folder (searched recursively), glob, ``.txt``, ``.csv`` or ``.parquet`` list (paths
            relative to the list's folder), image, ``.tar``, or ``shards-{000..003}.tar``; all of
            them also as ``s3://…``, and lists may contain object URLs.

    Raises:
        ValueError: the input does not exist, is of an unknown type, or mixes images and tars.
    """
    path = location(source)
    if path.is_file():
        return _from_file(path)
    pattern = _RANGE.sub("*", source)
    if path.is_dir():
        paths, base = _walk(path), path
    elif glob.has_magic(pattern):
        base = _fixed_part(location(pattern))
        paths = (p for name in expand_ranges(source) for p in _matches(location(name), base))
    else:
        raise ValueError(
            f"list inputs: expected a folder, glob, list or tars, got {source!r}: no such"
        )
    return _expand(paths, base)


def expand_ranges(pattern: str) -> list[str]:
    """``a-{08..10}.tar`` -> ``a-08.tar a-09.tar a-10.tar``; several ranges multiply.

    Raises:
        ValueError: a range that ends before it starts.
    """
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = match[1], match[2]
    if int(last) < int(first):
        raise ValueError(f"list inputs: expected a range that goes up, got {match[0]}")
    heads = (
        pattern[: match.start()] + str(i).zfill(len(first))
        for i in range(int(first), int(last) + 1)
    )
    tails = expand_ranges(pattern[match.end() :])
    return [head + tail for head in heads for tail in tails]


def _matches(name: Path, base: Path) -> Iterable[Path]:
    """Paths that match a glob; a name without wildcards matches even if it does not exist."""
    if not glob.has_magic(str(name)):
        return [name]
    return base.glob(name.relative_to(base).as_posix())


def _walk(folder: Path) -> Iterator[Path]:
    if is_remote(folder):
        store: Any = folder
        yield from (store.with_segments(name) for name in store.fs.find(store.path))
        return

    def fail(error: OSError) -> None:
        raise error  # by default os.walk would skip such a folder silently

    # Folders too: one that is named x.jpg is an input, which then fails.
    for parent, folders, files in os.walk(folder, onerror=fail):
        for name in (*folders, *files):
            yield Path(parent, name)


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first wildcard."""
    folders = (folder for folder in pattern.parents if not glob.has_magic(str(folder)))
    return next(folders, pattern.parent)


def _expand(paths: Iterable[Path], base: Path) -> Iterator[Entry]:
    """Entries of images or tars; other files are skipped."""
    # Sorts bytes, the smallest form, because there may be millions.
    images: list[bytes] = []
    tars: list[bytes] = []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(os.fsencode(str(path)))
        elif suffix == ".tar":
            tars.append(os.fsencode(str(path)))
    if images and tars:
        raise ValueError(
            f"list inputs: expected images or tars, got both ({images[0]!r}, {tars[0]!r}); "
            "give a glob of one kind"
        )
    for encoded in sorted(images or tars):
        text = os.fsdecode(encoded)
        path = location(text) if is_remote(base) else Path(text)
        name = printable(path.relative_to(base).as_posix())
        if tars:
            yield from tar_entries(path, name, IMAGE_SUFFIXES)
        else:
            yield Entry(name, path_uri(path))


def _from_file(path: Path) -> Iterator[Entry]:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES or suffix == ".tar":
        return _expand([path], path.parent)
    if suffix in TEXT_SUFFIXES:
        return _from_rows(path, ((name, None, None, None) for name in _text_rows(path)))
    if suffix == ".csv":
        return _from_rows(path, _csv_rows(path))
    if suffix in PARQUET_SUFFIXES:
        return _from_rows(path, _parquet_rows(path))
    raise ValueError(
        f"list inputs: expected a folder, a glob, an image, *.tar, *.csv, "
        f"{'/'.join(TEXT_SUFFIXES + PARQUET_SUFFIXES)}, got {path}"
    )


def _from_rows(path: Path, rows: Iterable[_Row]) -> Iterator[Entry]:
    """Entries of the rows of the list at ``path``."""
    for number, (name, identity, latitude, longitude) in enumerate(rows, 1):
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"list inputs: expected a path in row {number} of {path}, got {name!r}"
            )
        has_id = identity is not None and identity != ""
        lat, lon = read_place(latitude, longitude, f"row {number} of {path}")
        yield Entry(
            printable(str(identity) if has_id else name),
            path_uri(_named(path, number, name)),
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


def _text_rows(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            line = line if number else line.removeprefix(codecs.BOM_UTF8)
            name = os.fsdecode(line.rstrip(b"\r\n"))
            if name:
                yield name


def _path_column(path: Path, names: Iterable[str]) -> str:
    names = list(names)
    for column in PATH_COLUMNS:
        if column in names:
            return column
    raise ValueError(
        f"list inputs: expected {path} to have a column {', '.join(PATH_COLUMNS)}, got {names}"
    )


def _csv_rows(path: Path) -> Iterator[_Row]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        column, place = _path_column(path, names), place_columns(names, path) or ("", "")
        try:
            for row in reader:
                yield row[column], row.get("id"), row.get(place[0]), row.get(place[1])
        except csv.Error as error:
            raise ValueError(f"list inputs: expected {path} to be CSV, got: {error}") from error


def _parquet_rows(path: Path) -> Iterator[_Row]:
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        place = place_columns(names, path) or ("", "")
        wanted = [_path_column(path, names), "id", *place]
        for batch in file.iter_batches(columns=[name for name in wanted if name in names]):
            known = dict(zip(batch.schema.names, batch.columns, strict=True))
            nothing = [None] * batch.num_rows
            yield from zip(
                *(known[name].to_pylist() if name in known else nothing for name in wanted),
                strict=True,
            )
