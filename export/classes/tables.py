"""Turn errors of reading a CSV or Parquet file into ones that name it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Errors of reading a CSV or Parquet file become ones that name it.

    Args:
        path: of the file.
        what: what errors begin with.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is neither.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}: expected a file, got {path}; check the path")
    try:
        yield
    except (csv.Error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{what}: expected {path} as CSV in UTF-8 or as Parquet, got: {error}"
        ) from error
