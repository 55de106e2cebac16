"""Index WebDataset tars, whose members are read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from combicam.engine.inputs.entry import Entry, path_uri, printable


def tar_entries(path: Path, name: str, suffixes: frozenset[str]) -> Iterator[Entry]:
    """Entries of a tar's images, in the tar's order.

    Args:
        path: an uncompressed tar.
        name: of the tar in ids (``name::member``).
        suffixes: of image files, lower case.

    Raises:
        ValueError: a compressed, truncated or corrupt tar.
    """
    uri = path_uri(path)
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isreg() or Path(member.name).suffix.lower() not in suffixes:
                    continue
                if member.issparse():
                    raise tarfile.ReadError(f"member {member.name} is sparse")
                yield Entry(
                    f"{name}::{printable(member.name)}", uri, member.offset_data, member.size
                )
            _check_end(file, tar.offset)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"list inputs: expected {path} to be a whole, uncompressed tar, got: {error}"
        ) from error


def _check_end(file: BinaryIO, end: int) -> None:
    """Check that only zeros or nothing follows: tarfile takes a damaged header for the end."""
    file.seek(end)
    if any(file.read(tarfile.BLOCKSIZE)):
        raise tarfile.ReadError(f"damaged header at byte {end}")
