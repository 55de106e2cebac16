"""Resolve local paths and paths in object stores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem
from tyro.constructors import PrimitiveConstructorSpec

from combicam.errors import RunError, first_line
from combicam.requirements import require

# Scheme of a store's paths -> the module of its client.
SCHEMES = {"s3": "s3fs", "gs": "gcsfs"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")
# Errors of the stores' clients, besides OSError, when a store is unreachable or refuses.
_CLIENTS = frozenset({"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests"})


def location(name: str | os.PathLike[str]) -> Path:
    """The path of a name; ``s3://bucket/key`` and ``gs://bucket/key`` are paths in a store.

    Use only what a store's path has in common with :class:`pathlib.Path`: ``/``, ``name``,
    ``parent``, ``exists``, ``open``, ``read_bytes``, ``glob``, ``unlink``, … It is a
    ``universal_pathlib.UPath``, which finds credentials and endpoints like its client does
    (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, …).

    Args:
        name: of a file or folder; a path is returned unchanged.

    Raises:
        ValueError: an unsupported store.
        MissingExtra: its client is not installed.
    """
    match = _SCHEME.match(str(name))
    if match is not None and isinstance(name, Path):
        raise ValueError(
            f"location: expected a store's path as text, got Path({str(name)!r}), which pathlib "
            "has altered; leave out Path()"
        )
    if match is None or not isinstance(name, str):
        return Path(name) if isinstance(name, str) else cast(Path, name)
    scheme = match[1].lower()
    if scheme not in SCHEMES:
        raise ValueError(
            f"location: expected a path, or one of {', '.join(f'{s}://' for s in SCHEMES)}, "
            f"got {name}; mount it, or copy it"
        )
    for module in (SCHEMES[scheme], "upath"):
        require(module, extra=scheme, operation=f"location {name}")
    from upath import UPath

    # Cached listings would not show what other machines commit later.
    return cast(Path, UPath(name.rstrip("/"), use_listings_cache=False))


# For command-line arguments: Path() would alter a store's URL.
LOCATION = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH",
    instance_from_str=lambda words: location(words[0]),
    is_instance=lambda value: not isinstance(value, str),
    str_from_instance=lambda value: [str(value)],
)


def is_remote(path: Path) -> bool:
    """Whether a path is in an object store."""
    return not isinstance(path, Path)


def names_store(name: object) -> bool:
    """Whether a text is a path in an object store."""
    return isinstance(name, str) and _SCHEME.match(name) is not None


def is_client_error(error: BaseException) -> bool:
    """Whether an error was raised by a store's client."""
    return type(error).__module__.partition(".")[0] in _CLIENTS


def open_parquet(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``; of an object, only the parts that are read are fetched.

    Raises:
        FileNotFoundError: no such file.
        RunError: it is damaged, or not a Parquet file.
    """
    name, system = arrow_file(path)
    with damage_named(path):
        return pq.ParquetFile(name, filesystem=system)


def arrow_file(path: Path) -> tuple[str, Any]:
    """Name and file system for pyarrow, which would parse a relative ``run-10:00/x`` as a URL."""
    store: Any = path
    return (store.path, store.fs) if is_remote(path) else (str(path.absolute()), LocalFileSystem())


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a Parquet file, or some of its columns, as a ``pyarrow.Table``.

    Raises:
        FileNotFoundError: no such file.
        RunError: it is damaged, or not a Parquet file.
    """
    with open_parquet(path) as file, damage_named(path):
        return file.read(columns=None if columns is None else list(columns))


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Report what pyarrow says of a damaged Parquet file as RunError."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; pyarrow has none
            raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"read: expected {path} to be an intact Parquet file, got {first_line(error)}; write it "
        "again; if it is a run's shard, delete it and run again"
    )


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Read small files of the same file system or store; those of a store concurrently.

    Bytes that are not UTF-8, as in damaged files, are replaced.

    Raises:
        FileNotFoundError: one of them does not exist.
    """
    if not paths or not is_remote(paths[0]):
        return [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    stores: Sequence[Any] = paths
    names = [store.path for store in stores]
    found = stores[0].fs.cat(names)
    # `cat` of one name returns bytes, of several a dictionary.
    contents = found if isinstance(found, dict) else {names[0]: found}
    return [contents[name].decode(errors="replace") for name in names]


def read_heads(paths: Sequence[Path], size: int) -> list[bytes]:
    """The first bytes of files of the same file system or store; none of one that is not readable.

    Args:
        paths: of files; those of a store are read concurrently.
        size: number of bytes.
    """
    if paths and is_remote(paths[0]):
        stores: Sequence[Any] = paths
        names, starts, ends = [p.path for p in stores], [0] * len(paths), [size] * len(paths)
        found = stores[0].fs.cat_ranges(names, starts, ends, on_error="return")
        return [head if isinstance(head, bytes) else b"" for head in found]
    return [_head(path, size) for path in paths]


def _head(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def read_range(path: Path, start: int | None = None, stop: int | None = None) -> bytes:
    """Read an object of a store, or a range of its bytes.

    Raises:
        FileNotFoundError, PermissionError: it does not exist, or may not be read.
    """
    store: Any = path
    data: bytes = store.fs.cat_file(store.path, start=start, end=stop)
    return data
