"""Create a new file atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from combicam.engine.storage.atomic import commit, remove, temporary_path
from combicam.engine.storage.paths import is_remote


@contextmanager
def new_file(path: Path, what: str) -> Iterator[Path]:
    """The path to write to; the file appears at ``path`` when the block ends without an error.

    Args:
        path: of the file, local or in an object store; its folders are created.
        what: prefix of error messages.

    Raises:
        ValueError: ``path`` is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{what}: expected a file name, got the folder {path}; add a name")
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary_path(path)
        commit(path)
    except OSError as error:
        if error.filename is None:  # as while writing
            error.filename = str(path)
        raise
    finally:
        remove(temporary_path(path))
