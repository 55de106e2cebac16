"""List a run's inputs: a folder, a glob, a list, a data set, or tars."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from combicam.engine.images.formats import HEAD, image_format
from combicam.engine.inputs.entry import Entry, path_uri, printable
from combicam.engine.inputs.lists import (
    LIST_SUFFIXES,
    PARQUET_SUFFIXES,
    TABLE_SUFFIXES,
    list_entries,
)
from combicam.engine.inputs.selection import (
    EXCLUDED,
    IMAGE_SUFFIXES,
    SelectionConfig,
    Tally,
    is_image_name,
    is_junk,
)
from combicam.engine.inputs.streams import is_tar
from combicam.engine.inputs.table_images import ARROW
from combicam.engine.inputs.tar import tar_entries
from combicam.engine.inputs.walk import matches, walk
from combicam.engine.storage.paths import is_remote, location, read_heads

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_HEADS_AT_ONCE = 1000
# Tables' marks of Spark, and caches of Hugging Face.
_NO_TABLES = ("_", ".", "cache-")
_ALL = SelectionConfig()


def list_inputs(
    source: str, selection: SelectionConfig = _ALL, tally: Tally | None = None
) -> Iterator[Entry]:
    """Every input of a run, in a fixed order.

    Folders, globs and tars are sorted by path; members of a tar and lists keep their order.

    Args:
        source: folder (searched recursively, links followed), glob, list (``.txt``, ``.csv``,
            ``.tsv``, ``.jsonl``, ``.parquet``; paths relative to the list's folder), Parquet or
            Arrow files with the images themselves, or a folder of them, image, ``.tar``,
            ``.tar.gz``, ``.tar.zst``, or ``shards-{000..003}.tar``; all of them also as
            ``s3://…``, and lists may contain object URLs.
        selection: which images are inputs.
        tally: counts the files that are left out.

    Raises:
        ValueError: the input does not exist, is of an unknown type, or mixes images and tars.
    """
    tally = tally or Tally()
    path = location(source)
    if path.is_file():
        return _from_file(path, selection, tally)
    pattern = _RANGE.sub("*", source)
    if path.is_dir():
        paths, base = walk(path), path
    elif glob.has_magic(pattern):
        base = _fixed_part(location(pattern))
        paths = (p for name in expand_ranges(source) for p in matches(location(name), base))
    else:
        raise ValueError(
            f"list inputs: expected a folder, glob, list or tars, got {source!r}: no such"
        )
    return _expand(paths, base, selection, tally)


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


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first wildcard."""
    folders = (folder for folder in pattern.parents if not glob.has_magic(str(folder)))
    return next(folders, pattern.parent)


class _Found:
    """Paths of a folder or a glob by kind, as bytes, the smallest form: there may be millions."""

    def __init__(self, base: Path, tally: Tally) -> None:
        self.images: list[bytes] = []
        self.tars: list[bytes] = []
        self.tables: list[bytes] = []
        self._tally = tally
        kind = base.suffix.lower()
        # A folder list.csv/ of parts, as Spark writes it.
        self._tables = {*PARQUET_SUFFIXES, kind if kind in TABLE_SUFFIXES else ARROW}

    def add(self, paths: Iterable[Path]) -> None:
        nameless: list[Path] = []
        for path in paths:
            suffix = path.suffix.lower()
            if is_junk(path.name):
                continue
            if suffix in IMAGE_SUFFIXES:  # also a folder of such a name, which then fails
                self.images.append(_encoded(path))
            elif _is_folder(path):
                continue
            elif is_tar(path.name):
                self.tars.append(_encoded(path))
            elif not _is_file(path):
                self._tally.leave_out(path.name)
            elif suffix in self._tables and not path.name.startswith(_NO_TABLES):
                self.tables.append(_encoded(path))
            elif suffix:
                self._tally.leave_out(path.name)
            else:
                nameless.append(path)
                if len(nameless) >= _HEADS_AT_ONCE:
                    self._look(nameless)
                    nameless = []
        self._look(nameless)

    def _look(self, paths: list[Path]) -> None:
        """Look at the first bytes of files without a suffix."""
        for path, head in zip(paths, read_heads(paths, HEAD), strict=True):
            if image_format(head) is not None:
                self.images.append(_encoded(path))
            else:
                self._tally.leave_out(path.name)


def _expand(
    paths: Iterable[Path], base: Path, selection: SelectionConfig, tally: Tally
) -> Iterator[Entry]:
    """Entries of images, tars or tables; other files are counted."""
    found = _Found(base, tally)
    found.add(paths)
    if found.images and found.tars:
        raise ValueError(
            f"list inputs: expected images or tars, got both ({found.images[0]!r}, "
            f"{found.tars[0]!r}); give a glob of one kind"
        )
    if found.images or found.tars:
        for encoded in found.tables:
            tally.leave_out(os.fsdecode(encoded))
    for encoded in sorted(found.images or found.tars or found.tables):
        text = os.fsdecode(encoded)
        path = location(text) if is_remote(base) else Path(text)
        name = printable(path.relative_to(base).as_posix())
        if found.tars:
            yield from tar_entries(path, name, selection, tally)
        elif not found.images:
            yield from _listed(path, name, selection, tally)
        elif selection.takes(name):
            yield Entry(name, path_uri(path))
        else:
            tally.ignored[EXCLUDED] += 1


def _listed(path: Path, name: str, selection: SelectionConfig, tally: Tally) -> Iterator[Entry]:
    for entry in list_entries(path, name):
        # An image in a table has no name of its own.
        if entry.offset is not None or not entry.uri or selection.takes(entry.uri):
            yield entry
        else:
            tally.ignored[EXCLUDED] += 1


def _from_file(path: Path, selection: SelectionConfig, tally: Tally) -> Iterator[Entry]:
    suffix = path.suffix.lower()
    if suffix in LIST_SUFFIXES:
        return _listed(path, path.name, selection, tally)
    if is_image_name(path.name) or is_tar(path.name) or not suffix:
        return _expand([path], path.parent, selection, tally)
    raise ValueError(
        "list inputs: expected a folder, a glob, an image, *.tar, *.tar.gz, *.tar.zst, "
        f"{'/'.join(LIST_SUFFIXES)}, got {path}"
    )


def _is_folder(path: Path) -> bool:
    return not is_remote(path) and path.is_dir()


def _is_file(path: Path) -> bool:
    """Whether it is a regular file; a store has nothing else."""
    if is_remote(path):
        return True
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nothing
        return False


def _encoded(path: Path) -> bytes:
    return os.fsencode(str(path))
