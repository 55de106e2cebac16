"""Open a new file that appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from combicam.engine.storage.atomic import commit, temporary_path
from combicam.engine.storage.paths import is_remote


@contextmanager
def new_file(path: Path, what: str) -> Iterator[Path]:
    """Where to write what appears at ``path`` when the block ends without an error.

    Args:
        path: of the file, here or in an object store; its folders are made.
        what: what errors begin with.

    Raises:
        ValueError: a folder is there.
    """
    if path.is_dir():
        raise ValueError(f"{what}: expected the name of a file, got the folder {path}; add a name")
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary_path(path)
        commit(path)
    finally:
        temporary_path(path).unlink(missing_ok=True)
