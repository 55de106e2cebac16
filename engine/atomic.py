"""Files that appear complete or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def temporary_path(path: Path) -> Path:
    """Where ``path`` is written before it appears: hidden, in the same folder."""
    return path.with_name(f".{path.name}.tmp")


def commit(path: Path) -> None:
    """Make the file written at ``temporary_path(path)`` appear at ``path``, durably."""
    temporary = temporary_path(path)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON, atomically."""
    temporary_path(path).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    commit(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
