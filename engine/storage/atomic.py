"""Write files atomically."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from combicam.engine.storage.paths import is_remote
from combicam.errors import RunError, first_line


def temporary_path(path: Path, folder: Path | None = None) -> Path:
    """The path at which ``path`` is written before it appears: a hidden file in ``folder``, which
    is of the same file system; default: that of ``path``.

    Objects of a store are written on this machine first, so its temporary folder needs room for a
    few shards.
    """
    if is_remote(path):
        # A key may be longer than a file name can be.
        return Path(_scratch().name, f"{sha256(str(path).encode()).hexdigest()}-{path.name}")
    return (folder or path.parent) / f".{path.name}.tmp"


def commit(path: Path, folder: Path | None = None) -> None:
    """Make the file written at ``temporary_path(path, folder)`` appear at ``path``, durably.

    A file is renamed after fsync; an object appears when its upload is complete.
    """
    temporary = temporary_path(path, folder)
    if is_remote(path):
        store: Any = path
        store.fs.put_file(str(temporary), store.path)
        temporary.unlink()
        return
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def write_json(path: Path, values: dict[str, Any], durable: bool = True) -> None:
    """Write readable JSON, atomically.

    Args:
        path: of the file.
        values: JSON-ready.
        durable: whether it must outlive a power failure.
    """
    text = json.dumps(values, indent=2) + "\n"
    if is_remote(path):
        path.write_text(text, encoding="utf-8")
        return
    try:
        temporary_path(path).write_text(text, encoding="utf-8")
        if durable:
            commit(path)
        else:
            temporary_path(path).replace(path)
    except BaseException:
        remove(temporary_path(path))
        raise


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        advice: what to do if it is damaged.

    Raises:
        FileNotFoundError: no such file.
        RunError: it is damaged.
    """
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"read: expected {path} to be intact JSON, got {first_line(error)}; {advice}"
        ) from error
    if not isinstance(values, dict):
        raise RunError(
            f"read: expected {path} to be a JSON object, got {type(values).__name__}; {advice}"
        )
    return values


def remove(path: Path) -> None:
    """Delete a temporary file if it is there, and if the disk permits."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """The temporary folder of this process, removed when it exits."""
    return tempfile.TemporaryDirectory(prefix="combicam-")


def sync(path: Path) -> None:
    """Wait until a local file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
