"""Add the file name to errors of reading CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Re-raise errors of reading a CSV or Parquet file with its name.

    Args:
        path: of the file.
        what: prefix of error messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither CSV nor Parquet.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what}: expected a file, got {path}; check the path")
    try:
        yield
    except (csv.Error, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{what}: expected {path} as CSV in UTF-8 or as Parquet, got: {error}"
        ) from error
