"""Find files below a folder, or those that match a glob; links to folders are followed."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from combicam.engine.inputs.selection import is_junk
from combicam.engine.storage.paths import is_remote

Enter = Callable[[Path], bool]
_Identity = tuple[int, int]


def walk(folder: Path, enter: Enter = lambda path: True) -> Iterator[Path]:
    """Everything below a folder, folders too, but no files of operating systems.

    A link to a folder is followed, unless it leads back to a folder above it.

    Args:
        folder: in a file system or an object store.
        enter: whether a folder is looked into.

    Raises:
        OSError: a folder that cannot be read.
    """
    if is_remote(folder):
        store: Any = folder
        names = (store.with_segments(name) for name in store.fs.find(store.path))
        yield from (path for path in names if not is_junk(path.name))
        return
    waiting: list[tuple[Path, tuple[_Identity, ...]]] = [(folder, (_identity(folder),))]
    while waiting:
        here, above = waiting.pop()
        with os.scandir(here) as found:
            for item in found:
                if is_junk(item.name):
                    continue
                path = here / item.name
                yield path
                if _is_folder(item) and enter(path) and (this := _identity(path)) not in above:
                    waiting.append((path, (*above, this)))


def matches(pattern: Path, base: Path) -> Iterator[Path]:
    """Paths that match a glob; a name without wildcards matches even if it does not exist.

    Args:
        pattern: ``**`` stands for any number of folders.
        base: the folder above its first wildcard.
    """
    if not glob.has_magic(str(pattern)):
        yield pattern
        return
    name = pattern.relative_to(base).as_posix()
    parts = name.split("/")
    if is_remote(base) or "**" not in parts:
        yield from base.glob(name)
        return
    head = parts[: parts.index("**")]

    def may_match(path: Path) -> bool:
        return all(map(fnmatchcase, path.relative_to(base).parts, head))

    for path in walk(base, may_match):
        if _fits(path.relative_to(base).parts, parts):
            yield path


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return _fits(names, patterns[1:]) or (bool(names) and _fits(names[1:], patterns))
    return bool(names) and fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino
